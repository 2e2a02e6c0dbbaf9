#!/usr/bin/env bash
# What does flash attention change on this machine? Five runs with and five without, in turns, so
# that what the machine does meanwhile meets both sides. Then one run of each against itself: what
# is said when nothing was changed.
. "$(dirname "$0")/paths.sh"

run() { # FILE OPTION...
    local out=$1
    shift
    profinfer record --force -o "$out" -- "$LLAMA/llama-completion" -m "$MODEL" -t 2 -n 80 \
        -p "The three laws of robotics are" -no-cnv --temp 0 --ignore-eos -lv 1 "$@" >/dev/null 2>&1
}

for i in 1 2 3 4 5; do
    run on$i.pf -fa on
    run off$i.pf -fa off
done
say profinfer diff on?.pf vs off?.pf --phase decode
echo
say profinfer diff on?.pf vs off?.pf --phase decode --by role
echo
say profinfer diff on1.pf on2.pf --phase decode --by role --fail-over 3%
echo "exit status $?"

#!/usr/bin/env bash
# What is worth changing, and what it would save? Eight threads on two CPUs, and a context that is so
# long that attention takes most of the time; then the first thing to try, tried.
. "$(dirname "$0")/paths.sh"

common="-m $MODEL -no-cnv --temp 0 --ignore-eos -lv 1"
say profinfer record --force -o many.pf -- $LLAMA/llama-completion $common -t 8 -n 24 \
    -p Hello >/dev/null
echo
say profinfer report many.pf --explain oversubscribed
echo
for i in $(seq 420); do printf 'Sentence %d is a short one. ' $i; done >long.txt
say profinfer record --force -o long.pf -- $LLAMA/llama-completion $common -t 2 -n 24 \
    -c 4096 -fa off -f long.txt >/dev/null
echo
say profinfer report long.pf --explain attention
echo
say profinfer record --force -o flash.pf -- $LLAMA/llama-completion $common -t 2 -n 24 \
    -c 4096 -fa on -f long.txt >/dev/null
echo
for trace in long flash; do
    echo "\$ profinfer report $trace.pf --by role --phase decode | head -5"
    profinfer report $trace.pf --by role --phase decode | head -5
done

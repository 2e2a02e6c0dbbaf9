#!/usr/bin/env bash
# Where more threads stop helping, and why. Two runs of each, in turn: of several the median counts.
. "$(dirname "$0")/paths.sh"

for run in a b; do
    for threads in 1 2 4; do
        profinfer record --force -o t$threads$run.pf -- $LLAMA/llama-completion -m $MODEL \
            -t $threads -n 48 -p "Once upon a time there were three laws that a robot must obey" \
            -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null 2>&1
    done
done
say profinfer scaling t1a.pf t1b.pf t2a.pf t2b.pf t4a.pf t4b.pf
echo
say profinfer scaling t1a.pf t1b.pf t2a.pf t2b.pf t4a.pf t4b.pf --phase prefill
echo
# Speed, roles and sizes of operators over threads, as SVG files; --html makes a page.
say profinfer scaling t1a.pf t1b.pf t2a.pf t2b.pf t4a.pf t4b.pf --plots threads-plots --force

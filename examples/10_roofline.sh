#!/usr/bin/env bash
# What bounds each operator: memory, compute, or neither? No hardware counter is needed.
. "$(dirname "$0")/paths.sh"

say profinfer calibrate 2>/dev/null
echo
say profinfer record --force -o roof.pf -- $LLAMA/llama-completion -m $MODEL -t 2 -n 64 \
    -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
echo
say profinfer report roof.pf --roofline --phase decode
echo
say profinfer report roof.pf --roofline --by shape --phase decode --top 5

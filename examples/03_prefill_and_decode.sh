#!/usr/bin/env bash
# The same operators, two different diseases: prefill multiplies matrices, decode reads weights.
. "$(dirname "$0")/paths.sh"

say profinfer record --force -o long.pf -- $LLAMA/llama-completion -m $MODEL -t 2 -n 32 \
    -p "$(printf 'All work and no play makes Jack a dull boy. %.0s' {1..12})" -no-cnv --temp 0 -lv 1
echo
say profinfer report long.pf --by op --phase prefill
echo
say profinfer report long.pf --by op --phase decode

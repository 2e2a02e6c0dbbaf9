#!/usr/bin/env bash
# How the time of a matrix product goes with its size: products with weights (static) are nearly
# proportional to M x N x K; attention over the KV cache (dynamic) has its own slope.
. "$(dirname "$0")/paths.sh"

say profinfer record --force -o sizes.pf -- $LLAMA/llama-completion -m $MODEL -t 1 -n 300 \
    -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
echo
say profinfer report sizes.pf --by matmul --phase decode

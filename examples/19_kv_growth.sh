#!/usr/bin/env bash
# What a token costs more the longer the KV cache is: attention takes the growth, in a staircase
# where the engine lengthens the cache that it reads by 256 cells. Which tokens were slow, and why.
. "$(dirname "$0")/paths.sh"

say profinfer record --force -o growth.pf -- $LLAMA/llama-completion -m $MODEL -t 2 -n 560 \
    -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
echo
say profinfer report growth.pf --by position
echo
say profinfer report growth.pf --by outlier --top 5
echo
say profinfer report growth.pf --html growth.html

#!/usr/bin/env bash
# A process that runs already: two seconds of it, and it goes on undisturbed.
. "$(dirname "$0")/paths.sh"

$LLAMA/llama-completion -m $MODEL -t 2 -n 1500 -p "Once upon a time" -no-cnv --temp 0 \
    --ignore-eos -lv 0 >/dev/null 2>&1 &
sleep 2
say profinfer record --force -o live.pf --pid $! --duration 2s
kill $!
wait $! 2>/dev/null
echo
say profinfer report live.pf --by op --phase decode

#!/usr/bin/env bash
# A running generation, watched; the last two of four looks, two seconds apart. On a terminal `profinfer top` has a
# screen of its own; --plain prints a block a look, as it does into a pipe.
. "$(dirname "$0")/paths.sh"

"$LLAMA"/llama-completion -m "$MODEL" -t 2 -n -1 -c 512 -p "Once upon a time" -no-cnv \
    --ignore-eos --context-shift -lv 1 >/dev/null 2>&1 &
target=$!
trap 'kill $target' EXIT
sleep 3
say profinfer top --pid $target -n 4 --plain 2>&1 | tail -n 42
echo
echo '$ profinfer top --pid PID -n 1 --format json | head -c 300'
profinfer top --pid $target -n 1 --format json 2>/dev/null | head -c 300
echo

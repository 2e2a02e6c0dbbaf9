#!/usr/bin/env bash
# Why does it get slower with more threads? On 2 CPUs, 2 threads share the work of one; of 4 each
# should compute half as long again. Instead each computes longer, because half of the time it is
# not running, and the others wait for it at every barrier.
. "$(dirname "$0")/paths.sh"

for threads in 1 2 4; do
    say profinfer record --force -o t$threads.pf -- $LLAMA/llama-completion -m $MODEL -t $threads \
        -n 32 -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
    echo
    say profinfer report t$threads.pf --by thread --phase decode
    echo
done

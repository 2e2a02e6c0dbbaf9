#!/usr/bin/env bash
# Eight threads on two CPUs: most of the time a thread is not running, and everybody waits for it
# at every barrier. The scheduler's events say so, and what to try.
. "$(dirname "$0")/paths.sh"

for threads in 8 2; do
    say profinfer record --force -o t$threads.pf -- taskset -c 0,1 $LLAMA/llama-completion \
        -m $MODEL -t $threads -n 32 -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 \
        >/dev/null
    echo
    say profinfer report t$threads.pf --by thread --phase decode
    echo
done

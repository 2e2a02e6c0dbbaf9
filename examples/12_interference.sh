#!/usr/bin/env bash
# A busy process of high priority on one of the two CPUs of a run with two threads: for as long as
# it lasts, both threads share the other CPU. On the timeline the `state` tracks below the threads
# take turns, then run side by side.
. "$(dirname "$0")/paths.sh"

# Two seconds of work, beginning when the target computes.
(sleep 3.5; exec nice -n -10 taskset -c 1 timeout 2 sh -c 'while :; do :; done') &
say profinfer record --force -o interference.pf -- $LLAMA/llama-completion -m $MODEL -t 2 -n 320 \
    -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
wait
echo
say profinfer report interference.pf --by thread --phase decode
echo
say profinfer export --force -o interference.pftrace interference.pf
echo
# Which CPU each thread ran on, by tenth of the run.
echo '$ python 12_where_threads_ran.py interference.pf'
"$PYTHON" "$HERE/12_where_threads_ran.py" interference.pf

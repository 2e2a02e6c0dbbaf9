#!/usr/bin/env bash
# A busy process of high priority on one of the two CPUs of a run with two threads: for as long as
# it lasts, both threads share the other CPU. On the timeline the `state` tracks below the threads
# take turns, then run side by side.
. "$(dirname "$0")/paths.sh"

# Two seconds of work, beginning when the target computes. It stands ready before, so that it has
# its name and priority when the kernel tells of it.
nice -n -10 taskset -c 1 sh -c 'while :; do :; done' &
busy=$!
disown $busy # the shell has nothing to say of its end
sleep 0.2
kill -STOP $busy
(sleep 3.5; kill -CONT $busy; sleep 2; kill -KILL $busy) &
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

#!/usr/bin/env bash
# A container that may use half a CPU: the kernel stops its threads in every period, and two
# threads that wait for each other use the half up faster than one.
. "$(dirname "$0")/paths.sh"

if [ -e /sys/fs/cgroup/cpu/cpu.cfs_quota_us ] || [ -d /sys/fs/cgroup/cpu ]; then
    GROUP=/sys/fs/cgroup/cpu/profinfer-example # cgroup v1
    mkdir -p $GROUP
    echo 100000 >$GROUP/cpu.cfs_period_us
    echo 50000 >$GROUP/cpu.cfs_quota_us
else
    GROUP=/sys/fs/cgroup/profinfer-example # cgroup v2
    echo +cpu >/sys/fs/cgroup/cgroup.subtree_control
    mkdir -p $GROUP
    echo "50000 100000" >$GROUP/cpu.max
fi
sh -c "echo \$\$ >$GROUP/cgroup.procs; exec $LLAMA/llama-completion -m $MODEL -t 2 -n 1500 \
    -p 'Once upon a time' -no-cnv --temp 0 --ignore-eos -lv 0" >/dev/null 2>&1 &
sleep 3
say profinfer record --force -o quota.pf --pid $! --duration 4s
kill $!
wait $! 2>/dev/null
rmdir $GROUP
echo
say profinfer report quota.pf --by thread --phase decode

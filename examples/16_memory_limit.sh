#!/usr/bin/env bash
# A model of 94 MiB in a cgroup of 100 MiB: with the program's own memory it does not fit, and the
# weights are read from disk again and again.
. "$(dirname "$0")/paths.sh"

ROOT=/sys/fs/cgroup/memory FILE=memory.limit_in_bytes # cgroup version 1
if [ ! -d $ROOT ]; then ROOT=/sys/fs/cgroup FILE=memory.max; fi
GROUP=$ROOT/profinfer-example
mkdir -p $GROUP
echo 100M >$GROUP/$FILE
cp "$MODEL" limited.gguf
sync limited.gguf
dd of=limited.gguf oflag=nocache conv=notrunc,fdatasync count=0 status=none

# A script that joins the group and then becomes the program.
printf '#!/bin/sh\necho $$ >%s/cgroup.procs\nexec "$@"\n' $GROUP >in-the-group.sh
chmod +x in-the-group.sh
say profinfer record --force -o limit.pf -- /bin/sh in-the-group.sh $LLAMA/llama-completion \
    -m limited.gguf -t 2 -n 8 -c 512 -nr -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 \
    >/dev/null
echo
say profinfer report limit.pf --faults
echo
say profinfer report limit.pf --faults --by layer --phase decode
rmdir $GROUP
rm limited.gguf

#!/usr/bin/env bash
# A generated mixture of experts of 205 MB in a cgroup of 185 MiB: experts that were not needed for
# long are no longer in memory, and the tokens that need them are slow.
. "$(dirname "$0")/paths.sh"

"$PYTHON" "$HERE/../tools/make_models.py" "$WORK/models" --large >/dev/null
ROOT=/sys/fs/cgroup/memory FILE=memory.limit_in_bytes # cgroup version 1
if [ ! -d $ROOT ]; then ROOT=/sys/fs/cgroup FILE=memory.max; fi
GROUP=$ROOT/profinfer-experts
mkdir -p $GROUP
echo 185M >$GROUP/$FILE
sync models/moe-64.gguf
dd of=models/moe-64.gguf oflag=nocache conv=notrunc,fdatasync count=0 status=none

# A script that joins the group and then becomes the program.
printf '#!/bin/sh\necho $$ >%s/cgroup.procs\nexec "$@"\n' $GROUP >in-the-group.sh
chmod +x in-the-group.sh
say profinfer record --force -o experts.pf -- /bin/sh in-the-group.sh $LLAMA/llama-completion \
    -m models/moe-64.gguf -t 2 -n 120 -c 512 -p "hello world" -no-cnv --temp 1 --seed 3 \
    --ignore-eos -lv 1 >/dev/null
echo
say profinfer report experts.pf --experts --phase decode
echo
say profinfer report experts.pf --experts --by token --phase decode --top 12
echo
say profinfer report experts.pf --experts --by token --layer 1 --phase decode --top 12
echo
# Experts over tokens, time over reuse distance, time over what disks read, as SVG files.
say profinfer report experts.pf --plots experts-plots --force
rmdir $GROUP
rm models/moe-64.gguf

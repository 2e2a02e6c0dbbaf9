#!/usr/bin/env bash
# A first start, with the model dropped from the page cache, against a second one.
. "$(dirname "$0")/paths.sh"

cp "$MODEL" cold.gguf
sync cold.gguf
run() {
    say profinfer record --force -o "$1.pf" -- $LLAMA/llama-completion -m cold.gguf -t 2 -n 16 \
        -c 512 -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
}
say dd of=cold.gguf oflag=nocache conv=notrunc,fdatasync count=0 status=none # drops it, and only it
run cold
echo
run warm
echo
say profinfer report cold.pf --faults --top 6
echo
echo "\$ profinfer report warm.pf --faults --top 6 | head -4"
profinfer report warm.pf --faults --top 6 | head -4
rm cold.gguf

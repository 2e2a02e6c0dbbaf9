#!/usr/bin/env bash
# The same model in two quantizations: which is faster here, in which operators, and how near each is to
# what the memory can do. Five runs of each, in turns.
. "$(dirname "$0")/paths.sh"
"$BACKENDS/bin/llama-quantize" --allow-requantize "$MODEL" q8_0.gguf Q8_0 2 >/dev/null 2>&1

run() { # FILE MODEL
    profinfer record --force -o "$1" -- "$LLAMA/llama-completion" -m "$2" -t 2 -n 80 \
        -p "The three laws of robotics are" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null 2>&1
}

for i in 1 2 3 4 5; do
    run four$i.pf "$MODEL"
    run eight$i.pf q8_0.gguf
done
say profinfer diff four?.pf vs eight?.pf --phase decode --by role
echo
say profinfer report four5.pf --roofline --by op --phase decode
echo
say profinfer report eight5.pf --roofline --by op --phase decode

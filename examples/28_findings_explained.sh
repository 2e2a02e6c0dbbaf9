#!/usr/bin/env bash
# What is worth changing, and what would it save? Eight threads on two CPUs; and a context so long
# that attention weighs most, of a tiny model, so that it takes seconds (tools/make_models.py).
. "$(dirname "$0")/paths.sh"

common="-no-cnv --temp 0 --ignore-eos -lv 1"
$PYTHON "$HERE/../tools/make_models.py" models >/dev/null
for i in $(seq 520); do printf 'Sentence %d is a short one. ' $i; done | head -c 14000 >long.txt

echo '$ profinfer record -o many.pf -- llama-completion -m SmolLM2-135M.gguf -t 8 ...'
profinfer record --force -o many.pf -- $LLAMA/llama-completion -m $MODEL $common -t 8 -n 16 \
    -p Hello 2>&1 >/dev/null | head -n 1
echo
say profinfer report many.pf --explain oversubscribed
echo
echo '$ profinfer record -o long.pf -- llama-completion -m tiny-dense.gguf -fa off ...'
profinfer record --force -o long.pf -- $LLAMA/llama-completion -m models/tiny-dense-q4_0.gguf \
    $common -t 2 -n 24 -c 16384 -fa off -f long.txt 2>&1 >/dev/null | head -n 1
echo
say profinfer report long.pf --explain attention

#!/usr/bin/env bash
# The graph of operators: what repeats, what could run at once, the critical path; a drawing of one
# layer; and what a mixture of experts has that a dense model lacks.
. "$(dirname "$0")/paths.sh"

[ -f first.pf ] || "$HERE/01_first_trace.sh" >/dev/null 2>&1
say profinfer graph first.pf
echo
say profinfer graph first.pf --force --layer 3 -o layer3.svg
echo
"$PYTHON" "$HERE/../tools/make_models.py" "$WORK/models" >/dev/null
for model in dense moe; do
    profinfer record --force -o $model.pf -- $LLAMA/llama-completion -m models/tiny-$model.gguf -t 2 \
        -n 32 -p "hello world" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null 2>&1
done
say profinfer graph dense.pf moe.pf

#!/usr/bin/env bash
# A generated mixture-of-experts model: what the router, the experts and the shared expert cost.
. "$(dirname "$0")/paths.sh"

"$PYTHON" "$HERE/../tools/make_models.py" "$WORK/models" >/dev/null
say profinfer record --force -o moe.pf -- $LLAMA/llama-completion -m models/tiny-moe.gguf -t 2 \
    -n 32 -p "hello world" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
echo
say profinfer report moe.pf --by role --phase decode

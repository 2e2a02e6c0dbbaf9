#!/usr/bin/env bash
# Speculative decoding: a small model drafts, the other checks four drafts at once. Each has its own
# context. The models are made here; what they say is nonsense, and the draft is often right.
. "$(dirname "$0")/paths.sh"
$PYTHON "$HERE/../tools/make_models.py" tiny >/dev/null

say profinfer record --force -o speculative.pf -- $BACKENDS/bin/llama-speculative-simple \
    -m tiny/tiny-dense-q8_0.gguf -md tiny/tiny-dense-q4_0.gguf --spec-type draft-simple \
    --spec-draft-n-max 4 -t 2 -n 60 -p "hello and the" --temp 0 >said.txt 2>told.txt
head -n 1 said.txt
grep -a 'n_dr\|accept\|^profinfer\|^  [0-9p]' told.txt
echo
say profinfer report speculative.pf --by context
echo
say profinfer report speculative.pf | sed -n '/^Phases/,/^$/p'

#!/usr/bin/env bash
# Record one generation of an unmodified llama.cpp and print what it did.
. "$(dirname "$0")/paths.sh"

say profinfer record --force -o first.pf -- $LLAMA/llama-completion -m $MODEL -t 2 -n 64 \
    -p "The three laws of thermodynamics are" -no-cnv --temp 0 -lv 1
echo
say profinfer report first.pf

#!/usr/bin/env bash
# The tables behind the reports are pandas DataFrames.
. "$(dirname "$0")/paths.sh"

say profinfer record --force -o kv.pf -- $LLAMA/llama-completion -m $MODEL -t 2 -n 300 \
    -p "Once upon a time" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
echo
echo '$ python 07_own_analysis.py kv.pf'
"$PYTHON" "$HERE/07_own_analysis.py" kv.pf

#!/usr/bin/env bash
# Every millisecond of a run, from exec to exit, and the same for a program that reads the rows.
. "$(dirname "$0")/paths.sh"

say profinfer record --force -o run.pf -- $LLAMA/llama-completion -m $MODEL -t 2 -n 64 \
    -p "The three laws" -no-cnv --temp 0 --ignore-eos -lv 1 >/dev/null
echo
say profinfer report run.pf --ledger
echo
cat >rows.py <<'PY'
import json, sys
rows = next(r for r in json.load(sys.stdin)["results"] if r["name"] == "run_ledger")
print(sum(row["time_ns"] for row in rows["rows"]), "of", rows["total"]["time_ns"], "ns")
PY
echo '$ profinfer report run.pf --ledger --format json | python rows.py'
profinfer report run.pf --ledger --format json | "$PYTHON" rows.py

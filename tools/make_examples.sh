#!/usr/bin/env bash
# Runs the examples and keeps what each prints beside it, at 80 columns: examples/NAME.txt
# A script that ends with status 77 needs something that is not on this machine.
set -euo pipefail

cd "$(dirname "$0")/../examples"
out=$(mktemp)
trap 'rm -f "$out"' EXIT
export COLUMNS=80 NO_COLOR=1 TERM=dumb
for script in [0-9]*.sh; do
    echo "$script" >&2
    status=0
    "./$script" >"$out" 2>&1 || status=$?
    # 77: it needs what is not here; what it printed elsewhere stays.
    [ $status -eq 77 ] && cat "$out" >&2 && continue
    [ $status -eq 0 ] || { cat "$out" >&2; exit 1; }
    cp "$out" "${script%.sh}.txt"
done

#!/usr/bin/env bash
# Runs the examples and keeps what each prints beside it, at 80 columns: examples/NAME.txt
set -euo pipefail

cd "$(dirname "$0")/../examples"
export COLUMNS=80 NO_COLOR=1 TERM=dumb
for script in [0-9]*.sh; do
    echo "$script" >&2
    "./$script" >"${script%.sh}.txt" 2>&1
done

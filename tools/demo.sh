#!/usr/bin/env bash
# Records a real generation, prints the report, writes the timeline. Called by `make demo`,
# which has set everything up.
set -euo pipefail

CACHE=${PROFINFER_CACHE:-$HOME/.cache/profinfer}
PROFINFER="$CACHE/python/bin/python -m profinfer"
MODEL=$CACHE/models/SmolLM2-135M-Instruct.Q4_1.gguf
LLAMA=$CACHE/llama.cpp-0.3.36/build/bin/llama-completion
OUT=${DEMO_DIR:-$CACHE/demo}

if [ "$(id -u)" -ne 0 ]; then
    echo "make demo records with eBPF, which needs root. Run: sudo make demo" >&2
    exit 1
fi
mkdir -p "$OUT"
rm -f "$OUT/demo.pf" "$OUT/demo.pftrace"

show() { # prints a command as one would type it, then runs it
    printf '\n$ %s\n' "$1"
    shift
    "$@"
}

show "profinfer record -o demo.pf -- llama-completion -m SmolLM2-135M -n 64 -t 2 --temp 0 -p ..." \
    $PROFINFER record -o "$OUT/demo.pf" -- \
    "$LLAMA" -m "$MODEL" -n 64 -t 2 -no-cnv --temp 0 -lv 1 \
    -p "The three laws of thermodynamics are"
show "profinfer report demo.pf" $PROFINFER report "$OUT/demo.pf"
show "profinfer export demo.pf -o demo.pftrace" \
    $PROFINFER export "$OUT/demo.pf" -o "$OUT/demo.pftrace"

cat <<END

Recorded:  $OUT/demo.pf
Timeline:  $OUT/demo.pftrace
           Open it at https://ui.perfetto.dev ("Open trace file"); nothing is uploaded.

Next, with the same trace or your own program:
  . $CACHE/python/bin/activate
  profinfer report $OUT/demo.pf --phase decode
  profinfer probes PROGRAM                # which functions would be probed, and why
  profinfer record -o mine.pf -- PROGRAM ARGS...
END

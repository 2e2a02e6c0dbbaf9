# Where the engine, the models and profinfer lie; sourced by the examples. Set LLAMA, MODEL or
# PROFINFER to use your own.
CACHE=${PROFINFER_CACHE:-$HOME/.cache/profinfer}
LLAMA=${LLAMA:-$CACHE/llama.cpp-0.3.36/build/bin}
MODEL=${MODEL:-$CACHE/models/SmolLM2-135M-Instruct.Q4_1.gguf}
PYTHON=${PYTHON:-$CACHE/python/bin/python}
BACKENDS=${BACKENDS:-$CACHE/llama.cpp-0.3.36/backends}
WORK=${WORK:-/tmp/profinfer-examples}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=$(dirname "$HERE")
mkdir -p "$WORK"
cd "$WORK"
export COLUMNS=${COLUMNS:-80}

profinfer() { "$PYTHON" -m profinfer "$@"; }

# Prints a command as one would type it, then runs it.
say() {
    printf '$ %s\n' "$*" | sed "s,$PYTHON,python,g; s,$LLAMA/,./,g; s,$MODEL,SmolLM2-135M.gguf,g; s,$BACKENDS/bin/,./,g; s,$WORK/,,g"
    "$@"
}

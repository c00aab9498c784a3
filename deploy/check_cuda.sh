#!/usr/bin/env bash
# Compiles the node's CUDA parts on a machine without a GPU: the compiler and libraries come from
# PyPI's CUDA wheels (1.1 GB, kept in .tools), nothing is run and nothing is linked.
#
#   deploy/check_cuda.sh [cargo's arguments; default: check --release -p elanus-embed --features cuda --tests]
#
# Our kernels (embed/src/gpu/kernels.cu) and candle's PTX are compiled by the real nvcc. The
# native objects of candle's quantized formats, which no part of the node uses, take an hour and
# matter to a linker only: they are left empty, unless FULL=1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=13.2.2
tools=$PWD/.tools/cuda-$version
if [ ! -e "$tools/ready" ]; then
    echo "== CUDA $version from PyPI"
    "${PYTHON:-python3}" -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet \
        "cuda-toolkit[nvcc,cudart,cccl,nvrtc,cublas,curand,crt,nvvm]==$version"
    touch "$tools/ready"
fi

CUDA_HOME=$(echo "$tools"/lib/python3*/site-packages/nvidia/cu13)
export CUDA_HOME CUDA_PATH=$CUDA_HOME PATH=$CUDA_HOME/bin:$PATH
# Plain PTX of the oldest generation runs on all later ones; 90 and above would become PTX for
# one generation only.
export CUDA_COMPUTE_CAP=80
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/cuda

if [ -z "${FULL:-}" ]; then
    cat > "$tools/nvcc-check" <<'NVCC'
#!/usr/bin/env bash
# nvcc, but objects are left empty: nothing will be linked.
out= object= previous=
for argument in "$@"; do
    [ "$previous" = -o ] && out=$argument
    [ "$argument" = -c ] && object=1
    previous=$argument
done
if [ -n "$object" ] && [ -n "$out" ]; then
    exec gcc -x c -c -o "$out" - < /dev/null
fi
exec "$CUDA_HOME/bin/nvcc" "$@"
NVCC
    chmod +x "$tools/nvcc-check"
    export NVCC=$tools/nvcc-check
fi

echo "== CUDA build: compiled, not run"
nvcc --version | tail -2
if [ $# -eq 0 ]; then
    set -- check --release -p elanus-embed --features cuda --tests
fi
cargo "$@"
echo "== kernels"
find "$CARGO_TARGET_DIR" -path '*elanus-embed*' -name kernels.ptx -printf '%p, %s bytes\n' | tail -1

#!/usr/bin/env bash
# Tests the kernels on this machine's GPU, then measures this package beside timm and the floor; needs no network, only an
# environment with torch, timm, pytest and what nfnet-timm depends on, installed or not itself: PYTHON names its Python.
# What ten minutes leave no time for is left out, and said. Writes benchmarks/cuda.json.
#   bash scripts/benchmark_gpu.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/scripts" HF_HUB_OFFLINE=1
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: $PYTHON finds no GPU that torch can use" >&2
    exit 1
fi
"$PYTHON" -m pytest -q --noconftest -W default tests/kernels/test_triton.py

SECONDS=0
measure() {
    if [ $SECONDS -gt 480 ]; then
        echo "left out, as the ten minutes are over: $*"
        return
    fi
    timeout $((600 - SECONDS)) "$PYTHON" scripts/benchmark.py "$@" --json benchmarks/cuda.json
}
on_the_gpu=(--device cuda --repeat 10)
measure agc "${on_the_gpu[@]}"
for command in inference train; do
    batch=(1 128)
    [ $command = train ] && batch=(4 64)
    for dtype in bfloat16 float32; do
        measure $command "${on_the_gpu[@]}" --dtype $dtype --channels-last --batch "${batch[@]}"
    done
    measure $command "${on_the_gpu[@]}" --dtype bfloat16 --batch "${batch[@]}"
done
for command in inference train; do
    measure $command "${on_the_gpu[@]}" --dtype bfloat16 --channels-last --compile --batch 64
done
measure coldstart --repeat 3

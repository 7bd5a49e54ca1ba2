#!/usr/bin/env bash
# Tests the kernels on this machine's GPU, then measures this package beside timm and the floor. Needs no network.
# PYTHON names a Python with torch, timm, pytest and the dependencies of nfnet-timm, which itself need not be installed.
# Stops after ten minutes and says what it left out. Writes benchmarks/results/cuda.json.
#   bash scripts/benchmarks/benchmark_gpu.sh
set -euo pipefail
case "${1:-}" in
-h | --help)
    sed -n '/^#!/d; /^[^#]/q; s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
?*)
    echo "error: $0 takes no arguments, got: $*" >&2
    exit 2
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1
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
    timeout $((600 - SECONDS)) "$PYTHON" scripts/benchmarks/speed.py "$@" --json benchmarks/results/cuda.json
}
on_the_gpu=(--device cuda --repeat 10)
measure agc "${on_the_gpu[@]}"
for command in inference train; do
    batch=(1 128)
    [ $command = train ] && batch=(4 64 256)
    for way in "--dtype bfloat16" "--dtype bfloat16 --cuda-graph" "--dtype float32"; do
        # shellcheck disable=SC2086  # a way is several words
        measure $command "${on_the_gpu[@]}" $way --channels-last --batch "${batch[@]}"
    done
done
for command in inference train; do
    measure $command "${on_the_gpu[@]}" --dtype bfloat16 --channels-last --compile --batch 64
done
measure coldstart --repeat 3

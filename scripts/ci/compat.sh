#!/usr/bin/env bash
# Tests the package with other libraries, in a separate environment in .cache/compat. Arguments go to pytest. --record
# writes benchmarks/results/compat.json; the table in docs/compat.md is made from it.
#   bash scripts/ci/compat.sh
set -euo pipefail
NFNET_TIMM_VENV=${NFNET_TIMM_COMPAT_VENV:-.cache/compat}
EXTRAS=compat source "$(dirname "$0")/../setup_env.sh"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
if [ "${1:-}" = --record ]; then
    shift
    export COMPAT_JSON=$PWD/benchmarks/results/compat.json
fi
python -m pytest tests/compat -n auto --maxprocesses 8 "$@"

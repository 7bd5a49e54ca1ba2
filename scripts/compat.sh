#!/usr/bin/env bash
# Tries the package with the libraries that its users have, in an environment of its own in .cache/compat; further
# arguments go to pytest. With --record, what was shown goes to benchmarks/compat.json, which docs/compat.md is made of.
#   bash scripts/compat.sh
set -euo pipefail
NFNET_TIMM_VENV=${NFNET_TIMM_COMPAT_VENV:-.cache/compat}
EXTRAS=compat source "$(dirname "$0")/setup_env.sh"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
if [ "${1:-}" = --record ]; then
    shift
    export COMPAT_JSON=$PWD/benchmarks/compat.json
fi
python -m pytest tests/compat -n auto --maxprocesses 8 "$@"

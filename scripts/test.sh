#!/usr/bin/env bash
# Installs the package with its test extra into .venv and runs the tests, offline, a worker for each core; further
# arguments go to pytest.
#   bash scripts/test.sh           the quick ones: minutes on two cores
#   bash scripts/test.sh --all     all of them
set -euo pipefail
EXTRAS=test source "$(dirname "$0")/setup_env.sh"
export HF_HUB_OFFLINE=1
# A thread for each worker: with more they wait for one another.
export OMP_NUM_THREADS=1
if [ "${1:-}" = --all ]; then
    shift
else
    set -- -m "not slow" "$@"
fi
exec python -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"

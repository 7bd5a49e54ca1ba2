#!/usr/bin/env bash
# Installs the package with its test extra into .venv and runs the tests, offline; arguments go to pytest.
#   bash scripts/test.sh -m "not slow"     the quick ones
set -euo pipefail
EXTRAS=test source "$(dirname "$0")/setup_env.sh"
export HF_HUB_OFFLINE=1
exec python -m pytest "$@"

#!/usr/bin/env bash
# Installs the package into .venv and runs the demo: about a minute on two cores, after the installation.
#   bash scripts/quickstart.sh [--out FOLDER] [--epochs N]
set -euo pipefail
EXTRAS=demo source "$(dirname "$0")/setup_env.sh"
exec nfnet-timm demo "$@"

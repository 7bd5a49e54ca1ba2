#!/usr/bin/env bash
# Builds the source distribution, unpacks it in an empty folder, collects all tests there, and runs a few.
#   bash scripts/ci/sdist.sh
set -euo pipefail
[[ $# -eq 0 || $1 = -h || $1 = --help ]] || { echo "error: $0 takes no arguments, got: $*" >&2 && exit 2; }
EXTRAS=test source "$(dirname "$0")/../setup_env.sh"
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
python -c 'import sys; from hatchling.build import build_sdist; build_sdist(sys.argv[1])' "$folder"
tar -xzf "$folder"/nfnet_timm-*.tar.gz -C "$folder"
rm "$folder"/nfnet_timm-*.tar.gz
NFNET_TIMM_VENV=$(cd "$venv" && pwd) # has everything: pyproject.toml is the same
export NFNET_TIMM_VENV
cd "$folder"/nfnet_timm-*
export PYTHONPATH=$PWD # before the installed package
bash scripts/test.sh --all --collect-only -q | tail -n 1
bash scripts/test.sh -q tests/test_docs.py tests/test_imports.py tests/publish/test_card.py tests/scripts/test_options.py

#!/usr/bin/env bash
# Formats, lints, type-checks; checks who imports whom, and rendered tables. With CI set, nothing is rewritten.
#   bash scripts/check.sh
set -euo pipefail
[[ $# -eq 0 || $1 = -h || $1 = --help ]] || { echo "error: $0 takes no arguments, got: $*" >&2 && exit 2; }
EXTRAS=dev source "$(dirname "$0")/setup_env.sh"
if [ -n "${CI:-}" ]; then
    ruff format --check .
    ruff check .
    python scripts/benchmarks/render_tables.py --check
else
    ruff format .
    ruff check --fix .
    python scripts/benchmarks/render_tables.py
fi
mypy
lint-imports

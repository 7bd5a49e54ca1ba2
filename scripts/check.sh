#!/usr/bin/env bash
# Formats, lints, type-checks; checks who imports whom, and rendered tables. With CI set, nothing is rewritten.
#   bash scripts/check.sh
set -euo pipefail
[[ $# -eq 0 || $1 = -h || $1 = --help ]] || { echo "error: $0 takes no arguments, got: $*" >&2 && exit 2; }
EXTRAS=dev source "$(dirname "$0")/setup_env.sh"
ruff format ${CI:+--check} .
[ -n "${CI:-}" ] || ruff check --fix .
ruff check .
python scripts/benchmarks/render_tables.py ${CI:+--check} & # a minute on one core
mypy
lint-imports
wait $!

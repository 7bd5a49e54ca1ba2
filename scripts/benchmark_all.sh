#!/usr/bin/env bash
# Measures everything that README.md and benchmarks/cpu.md say about speed on a CPU, on a machine left idle: half an
# hour on two cores. scripts/render_tables.py then puts the figures there.
#   bash scripts/benchmark_all.sh
set -euo pipefail
[[ $# -eq 0 || $1 = -h || $1 = --help ]] || { echo "error: $0 takes no arguments, got: $*" >&2 && exit 2; }
EXTRAS=test source "$(dirname "$0")/setup_env.sh"
measure() { python scripts/benchmark.py "$@" --json benchmarks/cpu.json; }
mkdir -p benchmarks
measure coldstart
measure agc
measure inference --profile
measure train --batch 2 --repeat 31 --profile
measure train --batch 8 --repeat 41 --profile
measure inference --channels-last
measure inference --dtype bfloat16
measure inference --compile --batch 1
measure inference --compile --batch 8
measure train --channels-last --repeat 7
measure train --dtype bfloat16 --repeat 7
python scripts/render_tables.py

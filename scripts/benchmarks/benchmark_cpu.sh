#!/usr/bin/env bash
# Measures the first table of docs/speed.md. Counts operations and predicts memory for its tables about GPUs.
# Takes half an hour on two idle cores. Writes benchmarks/results/ and renders the tables.
#   bash scripts/benchmarks/benchmark_cpu.sh
set -euo pipefail
[[ $# -eq 0 || $1 = -h || $1 = --help ]] || { echo "error: $0 takes no arguments, got: $*" >&2 && exit 2; }
EXTRAS=test source "$(dirname "$0")/../setup_env.sh"
measure() { python scripts/benchmarks/speed.py "$@" --json benchmarks/results/cpu.json; }
measure coldstart
measure agc
measure inference
measure train --batch 2 --repeat 31
measure train --batch 8 --repeat 41
measure inference --channels-last
measure inference --dtype bfloat16
measure inference --compile --batch 1
measure inference --compile --batch 8
measure train --channels-last --repeat 7
measure train --dtype bfloat16 --repeat 7
python scripts/benchmarks/launches.py --json benchmarks/results/launches.json
python scripts/benchmarks/memory.py --all
python scripts/benchmarks/render_tables.py

"""Measures torch.compile at several image sizes in one process, of this package and of timm's version of the network.

    python scripts/benchmarks/compile.py                 half an hour on two cores, most of it timm's
    python scripts/benchmarks/compile.py --limit 120     stops a network that compiles longer than two minutes

Each network has one block in each stage and narrow channels: the number of sizes decides here, not the network's size.
Each measurement is a process of its own, without the compiler's caches. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from results import RESULTS, new_file, positive, run, table, write_json

# Multiples of 32, as images are trained and tested; then two sizes whose halves are odd.
SIZES = (64, 96, 128, 160, 224, 80, 75)
NETWORKS = {"nfnet_timm": "nfnet_f0", "timm": "dm_nfnet_f0"}

# Runs in a fresh process and prints a line for each size: seconds of the first pass, and the graphs compiled so far.
PROGRAM = """
import json, sys, time
import timm, torch
from torch._dynamo.utils import counters
import nfnet_timm
name, mode, *sizes = sys.argv[1:]
torch.manual_seed(0)
shape = dict(depths=(1, 1, 1, 1), channels=(32, 64, 96, 96), group_size=8, num_classes=10)
model = torch.compile(timm.create_model(name, **shape).train(mode == "train"))
for size in map(int, sizes):
    x = torch.randn(2, 3, size, size)
    start = time.perf_counter()
    if mode == "train":
        model(x).square().sum().backward()
    else:
        with torch.no_grad():
            model(x)
    print(json.dumps([time.perf_counter() - start, counters["stats"]["unique_graphs"]]), flush=True)
"""


def main() -> None:
    """Measure each network in inference and in training, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=positive, default=600, help="seconds for each network and mode (%(default)s)")
    parser.add_argument("--json", type=new_file, default=RESULTS / "compile.json", help="(%(default)s)")
    args = parser.parse_args()
    rows = [measure(mode, label, args.limit) for mode in ("inference", "train") for label in NETWORKS]
    result = {"sizes": SIZES, "limit": args.limit, "rows": rows}
    print(compile_table(result))
    write_json(args.json, result)


def measure(mode: str, label: str, limit: int) -> dict[str, Any]:
    """Return the seconds of the first pass of each size; fewer where the limit was reached."""
    command = [sys.executable, "-c", PROGRAM, NETWORKS[label], mode, *map(str, SIZES)]
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    try:
        out = subprocess.run(command, stdout=subprocess.PIPE, env=environment, timeout=limit, check=True).stdout
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
    found = [json.loads(line) for line in out.splitlines()]
    graphs = found[-1][1] if found else 0
    return {"mode": mode, "network": label, "seconds": [seconds for seconds, _ in found], "graphs": graphs}


def compile_table(result: dict[str, Any]) -> str:
    """Return the table of what was measured; sizes that were not reached have a dash."""
    cells = []
    for row in result["rows"]:
        seconds = [f"{value:.1f}" for value in row["seconds"]]
        missing = ["-"] * (len(result["sizes"]) - len(seconds))
        if missing:
            missing[0] = f"over {result['limit'] - sum(row['seconds']):.0f}"
        network = {"nfnet_timm": "this package"}.get(row["network"], row["network"])
        mode = {"train": "training step"}.get(row["mode"], row["mode"])
        cells.append([f"{mode}, {network}", *seconds, *missing, str(row["graphs"])])
    return table(["", *(f"{size} px:" for size in result["sizes"]), "graphs:"], cells)


if __name__ == "__main__":
    run(main)

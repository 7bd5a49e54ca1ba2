"""Measures this package beside timm's own version of the same networks, on the same weights, in one run.

    python scripts/benchmark.py coldstart          a minute or two; writes 1 GB to a temporary folder

Prints a Markdown table with the machine and the versions; each figure is a median with its range; repetitions
alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

# Puts a repository as timm publishes it, with random weights, into a Hub cache. In a process of its own, as the peak
# memory of a process counts from that of its parent.
FILL_CACHE = """
import sys
from pathlib import Path
import timm
from timm.models import save_for_hf
home, name, commit = sys.argv[1:]
repo = Path(home) / "hub" / f"models--timm--{name}.dm_in1k"
(repo / "refs").mkdir(parents=True)
(repo / "refs" / "main").write_text(commit)
save_for_hf(timm.create_model(name), repo / "snapshots" / commit, safe_serialization=True)
"""

# Runs in a fresh process: seconds from the call to the model, and the peak of the process's memory in MiB.
COLD_START = """
import json, resource, sys, time
import timm
start = time.perf_counter()
model = timm.create_model(sys.argv[1], pretrained=True)
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def main() -> None:
    """Parse the command line and run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    coldstart = commands.add_parser("coldstart", help="from create_model(pretrained=True) to a model, cached file")
    coldstart.add_argument("--size", default="f3", help="f0 to f6 (%(default)s)")
    coldstart.add_argument("--repeat", type=int, default=5, help="fresh processes of each (%(default)s)")
    args = parser.parse_args()
    cold_start(args.size, args.repeat)


def cold_start(size: str, repeat: int) -> None:
    """Time ``create_model(..., pretrained=True)`` from one file in a Hub cache, ours and timm's, in fresh processes."""
    names = (f"nfnet_{size}", f"dm_nfnet_{size}")
    with tempfile.TemporaryDirectory() as home:
        subprocess.run([sys.executable, "-c", FILL_CACHE, home, names[1], "0" * 40], check=True)
        env = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(repeat):
            for name in names:
                out = subprocess.run([sys.executable, "-c", COLD_START, name], env=env, capture_output=True, check=True)
                runs[name].append(json.loads(out.stdout))
    print(machine())
    print("| network | seconds from call to model | peak memory, MiB |\n|---|---|---|")
    for name in names:
        seconds, memory = zip(*runs[name], strict=True)
        print(f"| {name} | {spread(seconds, '.3f')} | {spread(memory, '.0f')} |")
    (ours, our_memory), (timms, their_memory) = (
        [statistics.median(values) for values in zip(*runs[name], strict=True)] for name in names
    )
    print(f"| ratio | {timms / ours:.1f} times faster | {our_memory / their_memory:.2f} of timm's |")


def spread(values: tuple[float, ...], fmt: str) -> str:
    """Return the median of ``values`` with their range."""
    return f"{statistics.median(values):{fmt}} ({min(values):{fmt}} to {max(values):{fmt}})"


def machine() -> str:
    """Return what the figures were measured on."""
    import timm
    import torch

    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"timm {timm.__version__}, float32\n"
    )


if __name__ == "__main__":
    main()

"""Measures this package beside timm's own version of the same networks, on the same weights, in one run.

    python scripts/benchmark.py coldstart          a minute or two; writes 1 GB to a temporary folder
    python scripts/benchmark.py agc                half a minute; on a GPU with --device cuda

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
import time

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
    agc = commands.add_parser("agc", help="adaptive gradient clipping of all of NFNet-F0's parameters")
    agc.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    agc.add_argument("--repeat", type=int, default=15, help="repetitions of each (%(default)s)")
    args = parser.parse_args()
    if args.command == "agc":
        clipping(args.device, args.repeat)
    else:
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


def clipping(device: str, repeat: int) -> None:
    """Time our clipping and timm's on the same gradients, about half of whose units are clipped."""
    import timm
    import torch
    from timm.utils.agc import adaptive_clip_grad

    from nfnet_timm.agc import adaptive_clip_grad_, unitwise_norm

    torch.manual_seed(0)
    params = list(timm.create_model("nfnet_f0", device=device).parameters())
    grads = []
    for p in (p.detach() for p in params):
        grad = torch.randn_like(p)
        target = unitwise_norm(p).clamp(min=1e-3) * 0.01 * torch.exp2(4 * torch.rand_like(unitwise_norm(p)) - 2)
        grads.append(grad / unitwise_norm(grad) * target)
    functions = {"nfnet_timm": adaptive_clip_grad_, "timm": adaptive_clip_grad}
    times: dict[str, list[float]] = {name: [] for name in functions}
    memory: dict[str, float] = {}
    results: dict[str, list[torch.Tensor]] = {}
    for i in range(repeat + 1):  # the first of each is not counted
        for name, clip in functions.items():
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.clone()
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            clip(params, 0.01)
            if device == "cuda":
                torch.cuda.synchronize()
                memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
            if i:
                times[name].append(1000 * (time.perf_counter() - start))
            results[name] = [p.grad for p in params if p.grad is not None]
    pairs = zip(results["nfnet_timm"], results["timm"], strict=True)
    difference = max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)
    print(machine() if device == "cpu" else f"{torch.cuda.get_device_name()}, {machine()}")
    print("| clipping all of NFNet-F0 | ms |" + (" extra memory, MiB |" if memory else ""))
    print("|---|---|" + ("---|" if memory else ""))
    for name, values in times.items():
        print(f"| {name} | {spread(tuple(values), '.1f')} |" + (f" {memory[name]:.1f} |" if memory else ""))
    ratio = statistics.median(times["timm"]) / statistics.median(times["nfnet_timm"])
    print(f"| ratio | {ratio:.1f} times faster; results differ by at most {difference:.0e} |")


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

"""Measures this package beside timm's version of the same networks, on the same weights, in one run.

    python scripts/benchmarks/speed.py coldstart     a minute or two; writes 1 GB to a temporary folder
    python scripts/benchmarks/speed.py agc           half a minute; on a GPU with --device cuda
    python scripts/benchmarks/speed.py inference     some minutes; on a GPU with --device cuda --dtype bfloat16
    python scripts/benchmarks/speed.py train         the same of a training step
    bash scripts/benchmarks/benchmark_cpu.sh         all measurements of the first table in docs/speed.md

Prints the machine, the versions, times and memory. Each time is a median with its range; repetitions alternate.
--json adds the results to a file and replaces those of an earlier run with the same settings.
render_tables.py makes the table in docs/speed.md from benchmarks/results/cpu.json.
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
from functools import partial
from typing import Any

from results import add_record, positive, records_file, run

# Puts a repository as timm publishes it, with random weights, into a Hub cache. A separate process does it, because the
# peak memory of a process includes that of its parent.
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
import nfnet_timm
import timm
start = time.perf_counter()
model = timm.create_model(sys.argv[1], pretrained=True)
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def main() -> None:
    """Parse the command line, run one benchmark, and print what it measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    coldstart = commands.add_parser("coldstart", help="from create_model(pretrained=True) to a model, cached file")
    coldstart.add_argument("--repeat", type=positive, default=5, help="fresh processes of each (%(default)s)")
    coldstart.set_defaults(run=cold_start, device="cpu")
    agc = commands.add_parser("agc", help="adaptive gradient clipping of all of a network's parameters")
    agc.set_defaults(run=clipping)
    forward = commands.add_parser("inference", help="forward, beside timm's and a floor of plain convolutions")
    forward.set_defaults(batch=[1, 8])
    train = commands.add_parser("train", help="training step, beside timm's and a floor of plain convolutions")
    train.set_defaults(batch=[2, 8])
    for command in (forward, train):
        command.add_argument("--batch", type=positive, nargs="+", help="images at a time (%(default)s)")
        command.add_argument("--pixels", type=positive, default=192, help="size of the images (%(default)s)")
        command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
        command.add_argument("--channels-last", action="store_true", help="memory format of images and weights")
        command.add_argument("--compile", action="store_true", help="torch.compile every network")
        command.add_argument("--cuda-graph", action="store_true", help="the GPU alone: a pass is one CUDA graph")
        command.set_defaults(run=networks)
    for command in (agc, forward, train):
        command.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
        command.add_argument("--repeat", type=positive, default=15, help="repetitions of each (%(default)s)")
    for command in (coldstart, agc, forward, train):
        command.add_argument("--json", type=records_file, help="file to add the results to")
    args = parser.parse_args()
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no GPU here; leave it out to measure on the CPU")
    elif getattr(args, "cuda_graph", False):
        parser.error("--cuda-graph needs --device cuda")
    record = args.run(args)
    print(f"{record['what']} ({record['settings']}; {record['machine']})")
    for row in record["rows"]:
        timm = next(peer for peer in record["rows"] if (peer["case"], peer["network"]) == (row["case"], "timm"))
        times = f"{spread(row['milliseconds'], '.1f')} ms, timm's time over it {spread(ratios(timm, row), '.2f')}"
        print(f"{row['case']:10} {row['network']:27} {times}, peak of memory {row['peak_mib']:.0f} MiB")
    if args.json:
        add_record(args.json, record, lambda earlier: identity(earlier) == identity(record))


def identity(record: dict[str, Any]) -> list[Any]:
    """Return the key of a record; a later record with the same key replaces it."""
    return [record["benchmark"], record["settings"], sorted({row["case"] for row in record["rows"]})]


def cold_start(args: argparse.Namespace) -> dict[str, Any]:
    """Time ``create_model(..., pretrained=True)`` from one file in a Hub cache, ours and timm's, in fresh processes."""
    names = {"nfnet_timm": "nfnet_f3", "timm": "dm_nfnet_f3"}
    with tempfile.TemporaryDirectory() as home:
        subprocess.run([sys.executable, "-c", FILL_CACHE, home, names["timm"], "0" * 40], check=True)
        env = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        rows: list[dict[str, Any]] = [{"case": "", "network": n, "milliseconds": [], "peak_mib": 0} for n in names]
        for _ in range(args.repeat):
            for row in rows:
                command = [sys.executable, "-c", COLD_START, names[row["network"]]]
                out = subprocess.run(command, env=env, capture_output=True, check=True).stdout
                seconds, mib = json.loads(out)
                row["milliseconds"].append(1000 * seconds)
                row["peak_mib"] = max(row["peak_mib"], mib)
    what = "Cold start of F3: from create_model(pretrained=True) to a model, file in the Hub's cache"
    return {"benchmark": "coldstart", "what": what, "machine": machine("cpu"), "settings": "f3", "rows": rows}


def clipping(args: argparse.Namespace) -> dict[str, Any]:
    """Time our clipping and timm's on the same gradients, about half of whose units are clipped."""
    import timm
    import torch
    from networks import now, peak_memory
    from timm.utils.agc import adaptive_clip_grad

    from nfnet_timm.optim.agc import adaptive_clip_grad_, unitwise_norm

    torch.manual_seed(0)
    params = list(timm.create_model("nfnet_f0", device=args.device).parameters())
    grads = []
    for p in (p.detach() for p in params):
        grad, norm = torch.randn_like(p), unitwise_norm(p)
        target = norm.clamp(min=1e-3) * 0.01 * torch.exp2(4 * torch.rand_like(norm) - 2)
        grads.append(grad / unitwise_norm(grad) * target)

    def set_grads() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()

    clips: dict[str, Any] = {"nfnet_timm": adaptive_clip_grad_, "timm": adaptive_clip_grad, "floor": read_and_scale}
    rows: list[dict[str, Any]] = [{"case": "", "network": name, "milliseconds": []} for name in clips]
    for turn in range(args.repeat + 1):
        for row, clip in zip(rows, clips.values(), strict=True):
            set_grads()
            start = now(args.device)
            clip(params, 0.01)
            if turn:  # the first is the warm-up
                row["milliseconds"].append(1000 * (now(args.device) - start))
    for row, clip in zip(rows, clips.values(), strict=True):
        set_grads()
        row.update(peak_memory(partial(clip, params, 0.01), args.device))
    what = "Adaptive clipping of all of F0's gradients"
    settings = f"f0, {args.device}"
    return {"benchmark": "agc", "what": what, "machine": machine(args.device), "settings": settings, "rows": rows}


def read_and_scale(parameters: list[Any], _: float) -> None:
    """Do the minimum that clipping needs: read each weight and each gradient once, then scale the gradient."""
    for p in parameters:
        p.detach().sum()
        p.grad.sum()
        p.grad.mul_(0.5)


def networks(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the forward or the training step of the networks in networks.py."""
    from networks import inference, training

    rows = inference(args) if args.command == "inference" else training(args)
    what = "Inference" if args.command == "inference" else "Training step with adaptive clipping and SGD"
    settings = f"f0, {args.device}, {args.pixels} x {args.pixels} pixels, {args.dtype}, "
    settings += f"{'channels-last' if args.channels_last else 'contiguous'}, {'compiled' if args.compile else 'eager'}"
    settings += ", CUDA graph" if args.cuda_graph else ""
    record = {"benchmark": args.command, "what": f"{what} of F0, ms per image"}
    return {**record, "machine": machine(args.device), "settings": settings, "rows": rows}


def ratios(row: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Return the time of ``row`` over that of ``other`` for each repetition, in which one ran soon after the other."""
    return [a / b for a, b in zip(row["milliseconds"], other["milliseconds"], strict=True)]


def spread(values: list[float], fmt: str) -> str:
    """Return the median of ``values`` with their range."""
    return f"{statistics.median(values):{fmt}} ({min(values):{fmt}} to {max(values):{fmt}})"


def machine(device: str) -> str:
    """Return the machine and the versions that a figure depends on."""
    import timm
    import torch

    if device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        where = f"{torch.get_num_threads()} threads, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{where}, Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"


if __name__ == "__main__":
    run(main)

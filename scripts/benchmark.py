"""Measures this package beside timm's own version of the same networks, on the same weights, in one run.

    python scripts/benchmark.py coldstart          a minute or two; writes 1 GB to a temporary folder
    python scripts/benchmark.py agc                half a minute; on a GPU with --device cuda
    python scripts/benchmark.py inference          some minutes; on a GPU with --device cuda --dtype bfloat16
    python scripts/benchmark.py train              the same of a training step
    python scripts/benchmark.py launches           what a GPU is asked for in a training step, counted without one
    python scripts/benchmark.py memory             what a training step and inference take at their peak, predicted
    bash scripts/benchmark_all.sh                  all that is in README.md

Prints a Markdown table with the machine and the versions; each time is a median with its range; repetitions
alternate. --json adds the figures to a file, in place of those of an earlier run with the same settings.
scripts/render_tables.py puts the ones of benchmarks/ into README.md.
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

from common import add_record, positive, records_file

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
    coldstart.set_defaults(run=cold_start)
    agc = commands.add_parser("agc", help="adaptive gradient clipping of all of a network's parameters")
    agc.set_defaults(run=clipping)
    forward = commands.add_parser("inference", help="forward, beside timm's and a floor of plain convolutions")
    forward.set_defaults(batch=[1, 8])
    train = commands.add_parser("train", help="training step, beside timm's and a floor of plain convolutions")
    train.set_defaults(batch=[2, 8])
    for command in (forward, train):
        command.add_argument("--batch", type=positive, nargs="+", help="images at a time (%(default)s)")
        command.add_argument(
            "--pixels", type=positive, default=192, help="height and width of the images (%(default)s)"
        )
        command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
        command.add_argument("--channels-last", action="store_true", help="memory format of images and weights")
        command.add_argument("--compile", action="store_true", help="torch.compile every network")
        command.add_argument("--profile", action="store_true", help="add where the time goes, by operation")
        command.set_defaults(run=networks)
    for command in (agc, forward, train):
        command.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
        command.add_argument("--repeat", type=positive, default=15, help="repetitions of each (%(default)s)")
    for command in (coldstart, agc, forward, train):
        command.add_argument("--size", default="f0", choices=[f"f{i}" for i in range(7)], help="(%(default)s)")
        command.add_argument("--json", type=records_file, help="file to add the figures to")
    coldstart.set_defaults(size="f3", device="cpu")
    launches = commands.add_parser("launches", help="operations that a GPU is asked for, counted on any machine")
    launches.add_argument("--size", default="f0", choices=[f"f{i}" for i in range(7)], help="(%(default)s)")
    memory = commands.add_parser("memory", help="peak of a training step and of inference, predicted on any machine")
    memory.add_argument("--name", default="nfnet_f0", help="a network of this package (%(default)s)")
    for command in (launches, memory):
        command.add_argument("--batch", type=positive, default=8, help="images (%(default)s)")
        command.add_argument("--pixels", type=positive, help="height and width of the images (those of training)")
        command.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    args = parser.parse_args()
    if args.command in ("launches", "memory"):
        print(predicted(args, parser))
        return
    if args.device == "cuda" and not has_cuda():
        parser.error("--device cuda: torch finds no GPU here; leave it out to measure on the CPU")
    record = args.run(args)
    print(markdown(record))
    if args.json:
        add_record(args.json, record, lambda earlier: identity(earlier) == identity(record))


def predicted(args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return the table of what takes no measuring."""
    import benchmark_launches
    import benchmark_memory

    from nfnet_timm.models.variants import VARIANTS

    if args.command == "launches":
        return benchmark_launches.table(args)
    if args.name not in VARIANTS:
        parser.error(f"--name {args.name}: expected one of {', '.join(VARIANTS)}")
    return benchmark_memory.table(args)


def has_cuda() -> bool:
    """Tell whether torch has a GPU to run on."""
    import torch

    return torch.cuda.is_available()


def identity(record: dict[str, Any]) -> list[Any]:
    """Return what a record has in common with a later one that takes its place."""
    return [record["benchmark"], record["settings"], sorted({row["case"] for row in record["rows"]})]


def cold_start(args: argparse.Namespace) -> dict[str, Any]:
    """Time ``create_model(..., pretrained=True)`` from one file in a Hub cache, ours and timm's, in fresh processes."""
    names = {"nfnet_timm": f"nfnet_{args.size}", "timm": f"dm_nfnet_{args.size}"}
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
    what = f"Cold start of {args.size.upper()}: from create_model(pretrained=True) to a model, file in the Hub's cache"
    return {"benchmark": "coldstart", "what": what, "machine": machine("cpu"), "settings": args.size, "rows": rows}


def clipping(args: argparse.Namespace) -> dict[str, Any]:
    """Time our clipping and timm's on the same gradients, about half of whose units are clipped."""
    import timm
    import torch
    from benchmark_networks import memory, now
    from timm.utils.agc import adaptive_clip_grad

    from nfnet_timm.optim.agc import adaptive_clip_grad_, unitwise_norm

    torch.manual_seed(0)
    params = list(timm.create_model(f"nfnet_{args.size}", device=args.device).parameters())
    grads = []
    for p in (p.detach() for p in params):
        grad = torch.randn_like(p)
        target = unitwise_norm(p).clamp(min=1e-3) * 0.01 * torch.exp2(4 * torch.rand_like(unitwise_norm(p)) - 2)
        grads.append(grad / unitwise_norm(grad) * target)
    functions: dict[str, Any] = {"nfnet_timm": adaptive_clip_grad_, "timm": adaptive_clip_grad, "floor": read_and_scale}
    times: dict[str, list[float]] = {name: [] for name in functions}
    results: dict[str, list[torch.Tensor]] = {}
    peaks: dict[str, dict[str, float]] = {}
    for i in range(args.repeat + 2):  # the first is not counted, and the last measures memory instead
        for name, clip in functions.items():
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.clone()
            if i > args.repeat:
                peaks[name] = memory(partial(clip, params, 0.01), args.device)
                continue
            start = now(args.device)
            clip(params, 0.01)
            if i:
                times[name].append(1000 * (now(args.device) - start))
            results[name] = [p.grad for p in params if p.grad is not None]
    pairs = zip(results["nfnet_timm"], results["timm"], strict=True)
    difference = max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)
    what = f"Adaptive clipping of all of {args.size.upper()}'s gradients; results differ by at most {difference:.0e}"
    rows = [{"case": "", "network": name, "milliseconds": times[name], **peaks[name]} for name in functions]
    settings = f"{args.size}, {args.device}"
    return {"benchmark": "agc", "what": what, "machine": machine(args.device), "settings": settings, "rows": rows}


def read_and_scale(parameters: list[Any], _: float) -> None:
    """Do the least that clipping can do: read each weight and each gradient once, then scale the gradient."""
    for p in parameters:
        p.detach().sum()
        p.grad.sum()
        p.grad.mul_(0.5)


def networks(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the forward or the training step of the networks in benchmark_networks.py."""
    from benchmark_networks import inference, training

    rows = inference(args) if args.command == "inference" else training(args)
    what = "Inference" if args.command == "inference" else "Training step with adaptive clipping and SGD"
    settings = f"{args.size}, {args.device}, {args.pixels} x {args.pixels} pixels, {args.dtype}, "
    settings += f"{'channels-last' if args.channels_last else 'contiguous'}, {'compiled' if args.compile else 'eager'}"
    record = {"benchmark": args.command, "what": f"{what} of {args.size.upper()}, ms per image"}
    return {**record, "machine": machine(args.device), "settings": settings, "rows": rows}


def markdown(record: dict[str, Any]) -> str:
    """Return the table of ``record``: medians with ranges, of times and of their ratios to timm's and the floor's."""
    rows = record["rows"]
    floor = any(row["network"] == "floor" for row in rows)
    columns = ["batch"] if rows[0]["case"] else []
    columns += ["network", "ms", "timm's time over it", *(["its time over the floor's"] if floor else [])]
    columns += ["peak memory, MiB", *(["kept by the forward, MiB"] if "kept_mib" in rows[0] else [])]
    lines = [f"{record['what']} ({record['settings']}; {record['machine']})", ""]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        peers = {peer["network"]: peer for peer in rows if peer["case"] == row["case"]}
        cells = [row["case"].removeprefix("batch ")] if row["case"] else []
        cells += [row["network"], spread(row["milliseconds"], ".1f"), spread(ratios(peers["timm"], row), ".2f")]
        cells += [spread(ratios(row, peers["floor"]), ".2f")] if floor else []
        cells += [f"{row[key]:.0f}" for key in ("peak_mib", "kept_mib") if key in row]
        lines.append(f"| {' | '.join(cells)} |")
    for case in dict.fromkeys(row["case"] for row in rows if "operations" in row):
        lines += profile_table(case, [row for row in rows if row["case"] == case])
    return "\n".join(lines)


def profile_table(case: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of the operations that take the most time in any of ``rows``; "-": less than 0.5 %."""
    lines = ["", f"Where the time goes, {case}, ms in the operation itself (torch.profiler)", ""]
    lines += [f"| operation | {' | '.join(row['network'] for row in rows)} |", "|---" + "|---:" * len(rows) + "|"]
    names = {name: max(row["operations"].get(name, 0) for row in rows) for row in rows for name in row["operations"]}
    for name in sorted(names, key=lambda name: -names[name])[:16]:
        cells = [f"{row['operations'][name]:.1f}" if name in row["operations"] else "-" for row in rows]
        lines.append(f"| {name.replace('aten::', '')} | {' | '.join(cells)} |")
    return lines


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
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was added to a file")

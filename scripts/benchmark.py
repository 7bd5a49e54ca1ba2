"""Measures this package beside timm's own version of the same networks, on the same weights, in one run.

    python scripts/benchmark.py coldstart          a minute or two; writes 1 GB to a temporary folder
    python scripts/benchmark.py agc                half a minute; on a GPU with --device cuda
    python scripts/benchmark.py inference          some minutes; on a GPU with --device cuda --dtype bfloat16

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
from typing import Any

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
    forward = commands.add_parser(
        "inference", help="forward of a network, beside timm's and a floor of plain convolutions"
    )
    forward.add_argument("--size", default="f0", help="f0 to f6 (%(default)s)")
    forward.add_argument("--pixels", type=int, default=192, help="height and width of the images (%(default)s)")
    forward.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images at a time (%(default)s)")
    forward.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    forward.add_argument("--dtype", default="float32", help="float32, or bfloat16 by autocast (%(default)s)")
    forward.add_argument("--channels-last", action="store_true", help="memory format of images and weights")
    forward.add_argument("--compile", action="store_true", help="torch.compile every network")
    forward.add_argument("--repeat", type=int, default=15, help="repetitions of each (%(default)s)")
    forward.add_argument("--json", help="file to write the figures to as well")
    args = parser.parse_args()
    if args.command == "agc":
        clipping(args.device, args.repeat)
    elif args.command == "inference":
        inference(args)
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


def inference(args: argparse.Namespace) -> None:
    """Time the forward of ours as trained and reparameterized, of timm's, and of a floor, with the same weights.

    The floor is timm's network with a plain convolution of fixed weights in place of each that standardizes its own.
    """
    import timm
    import torch
    from timm.layers import Conv2dSame, ScaledStdConv2dSame
    from timm.utils import reparameterize_model

    torch.manual_seed(0)
    ours = timm.create_model(f"nfnet_{args.size}").eval()
    for name, p in ours.named_parameters():
        if name.endswith("skipinit_gain"):
            p.data.fill_(0.5)
    theirs = timm.create_model(f"dm_nfnet_{args.size}").eval()
    theirs.load_state_dict({k: v.view(-1, 1, 1, 1) if k.endswith(".gain") else v for k, v in ours.state_dict().items()})
    floor = timm.create_model(f"dm_nfnet_{args.size}").eval()
    for name, module in list(floor.named_modules()):
        if isinstance(module, ScaledStdConv2dSame):
            plain: Any = Conv2dSame if module.stride[0] > 1 else torch.nn.Conv2d
            padding = 0 if module.stride[0] > 1 else module.kernel_size[0] // 2
            floor.set_submodule(
                name,
                plain(
                    module.in_channels,
                    module.out_channels,
                    module.kernel_size,
                    stride=module.stride,
                    padding=padding,
                    groups=module.groups,
                ),
            )
    networks: dict[str, Any] = {
        "nfnet_timm": ours,
        "nfnet_timm, reparameterized": reparameterize_model(ours),
        "timm": theirs,
        "floor": floor,
    }
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    for name, network in networks.items():
        network = network.to(args.device, memory_format=layout)
        networks[name] = torch.compile(network) if args.compile else network
    settings = f"{args.dtype}, {'channels-last' if args.channels_last else 'contiguous'}"
    settings += f", {'compiled' if args.compile else 'eager'}, {args.pixels} x {args.pixels} pixels"
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    head = f"nfnet_{args.size} on {where}, {machine().rsplit(',', 1)[0]}, {settings}"
    print(f"{head}\n\n| batch | network | ms per image | timm's time over it | its time over the floor's |")
    print("|---:|---|---:|---:|---:|")
    record: dict[str, Any] = {"settings": head, "milliseconds_per_image": {}}
    for batch in args.batch:
        x = torch.randn(batch, 3, args.pixels, args.pixels).to(args.device, memory_format=layout)
        times: dict[str, list[float]] = {name: [] for name in networks}
        for i in range(args.repeat + 2):  # the first two are not counted
            for name, network in networks.items():
                if args.device == "cuda":
                    torch.cuda.synchronize()
                start = time.perf_counter()
                with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, args.dtype == "bfloat16"):
                    network(x)
                if args.device == "cuda":
                    torch.cuda.synchronize()
                if i >= 2:
                    times[name].append(1000 * (time.perf_counter() - start) / batch)
        median = {name: statistics.median(values) for name, values in times.items()}
        for name, values in times.items():
            print(
                f"| {batch} | {name} | {spread(tuple(values), '.1f')} | {median['timm'] / median[name]:.2f} | "
                f"{median[name] / median['floor']:.2f} |"
            )
        record["milliseconds_per_image"][str(batch)] = times
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


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

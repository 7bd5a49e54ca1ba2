"""Measures the time of a training step of NFNets and others, each at its own image size.

    python scripts/benchmarks/step_time.py           a quarter of an hour on two cores: F0 to F2, B3, B5, B7 and others
    python scripts/benchmarks/step_time.py --all     NFNet-F0 to F6, EfficientNet-B0 to B7 and others: an hour
    python scripts/benchmarks/step_time.py --all --device cuda --dtype bfloat16 --batch 32

Training is by SGD, of NFNets with adaptive clipping. Steps are repeated until the middle half of the times of each
network is within a tenth of their median, at most four times as often as --repeat says. Accuracies are published ones
or those that timm measured (hub/checkpoints.toml and scripts/figures/peers.toml), never measured here. The results are
drawn by scripts/figures/accuracy_latency.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import timm
import torch
import torch.nn.functional as F
from networks import autocast, now
from records import RESULTS, ROOT, new_file, positive, write_json
from timm.optim import create_optimizer_v2
from tqdm import tqdm  # huggingface_hub requires it

from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.checkpoints import load_published

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK = (
    *("nfnet_f0", "nfnet_f1", "nfnet_f2"),
    *("tf_efficientnet_b3", "tf_efficientnet_b5", "tf_efficientnet_b7"),
    *("resnet50", "convnext_base"),
)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="all networks, not eight of them")
    parser.add_argument("--batch", type=positive, default=4, help="images in a step (%(default)s)")
    parser.add_argument("--repeat", type=positive, default=5, help="steps of each, in turns, at least (%(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    parser.add_argument("--json", type=new_file, default=RESULTS / "step_time.json", help="(%(default)s)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; leave it out to measure on the CPU")
    record = measure(args)
    for row in record["rows"]:
        times = row["milliseconds"]
        low, high = middle_half(times)
        print(f"{row['name']:20} {row['pixels']:4} px {median(times):8.0f} ms an image ({low:.0f} to {high:.0f})")
    write_json(args.json, record)


def contenders() -> list[dict[str, Any]]:
    """Return the family, image size and top-1 of each network, and who measured the top-1."""
    nfnets: list[dict[str, Any]] = [
        {
            "name": name.split(".")[0],
            "family": "NFNet",
            "pixels": VARIANTS[name.split(".")[0]].train_size,
            "top1": released["top1"],
            "by": "published",
        }
        for name, released in load_published()["checkpoints"].items()
    ]
    text = (ROOT / "scripts" / "figures" / "peers.toml").read_text(encoding="utf-8")
    peers = [
        {
            "name": peer["name"],
            "family": peer["family"],
            "pixels": peer["train_size"],
            "top1": peer.get("top1", peer["timm_top1"]),
            "by": "published" if "top1" in peer else "measured by timm",
        }
        for peer in tomllib.loads(text)["peers"]
    ]
    return nfnets + peers


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return each network with the milliseconds per image of its steps."""
    rows = [row for row in contenders() if args.all or row["name"] in QUICK]
    for row in rows:
        row["milliseconds"] = []
    with tqdm(unit="step") as progress:
        # Eight at a time, because all of them do not fit into memory. Networks that are compared are in the same eight.
        for some in (rows[i : i + 8] for i in range(0, len(rows), 8)):
            steps = [step_of(row["name"], row["pixels"], args) for row in some]
            for turn in range(4 * args.repeat + 1):
                if turn > args.repeat and all(is_settled(row["milliseconds"]) for row in some):
                    break
                for row, step in zip(some, steps, strict=True):
                    progress.set_description(row["name"])
                    milliseconds = step()
                    if turn:  # the first is the warm-up
                        row["milliseconds"].append(milliseconds)
                    progress.update()
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {"machine": machine, "dtype": args.dtype, "batch": args.batch, "torch": torch.__version__, "rows": rows}


def middle_half(times: list[float]) -> tuple[float, float]:
    """Return the range of the middle half of ``times``."""
    low, _, high = quantiles(times, method="inclusive") if len(times) > 1 else (times[0],) * 3
    return low, high


def is_settled(times: list[float]) -> bool:
    """Return whether the middle half of ``times`` is within a tenth of the median."""
    low, high = middle_half(times)
    return high - low < 0.1 * median(times)


def step_of(name: str, pixels: int, args: argparse.Namespace) -> Callable[[], float]:
    """Return a function that takes a training step and returns its milliseconds per image."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name).to(args.device).train()
    opt = "agc-sgd" if name.startswith("nfnet_") else "sgd"
    optimizer = create_optimizer_v2(model, opt, lr=1e-4, momentum=0.9, weight_decay=2e-5)
    x = torch.randn(args.batch, 3, pixels, pixels, device=args.device)
    y = torch.randint(0, 1000, (args.batch,), device=args.device)

    def step() -> float:
        start = now(args.device)
        with autocast(args):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return (now(args.device) - start) * 1000 / args.batch

    return step


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; no results were written")

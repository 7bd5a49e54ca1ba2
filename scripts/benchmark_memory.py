"""What a training step and inference take at their peak, predicted without allocating anything.

The step runs on tensors without numbers, on the path of a GPU, and the bytes of all storages that are alive are added
up. What is not in it: the CUDA context, the workspaces of convolutions, and what an allocator leaves unused.

python scripts/benchmark_memory.py    writes benchmarks/memory.json, of which a table in docs/speed.md is rendered
"""

from __future__ import annotations

import argparse
import json
import weakref
from pathlib import Path
from typing import Any

import timm
import torch
from benchmark_launches import on_a_gpu
from common import parse_nothing, write_text
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nfnet_timm.models.variants import VARIANTS

GIB = 2**30
WAYS = ("as it is", "recompute_acts", "set_grad_checkpointing")


class Peak(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.bytes = self.peak = 0

    def add(self, x: Tensor) -> None:
        """Count the storage of ``x``, if it is not counted yet."""
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """Count a storage no more."""
        self.bytes -= self.alive.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and count what it makes."""
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.add(x)
        return out


def training_peak(name: str, way: str, batch: int, pixels: int, bfloat16: bool, ema: bool = False) -> int:
    """Return the bytes of a step of SGD with momentum and clipping: parameters, gradients, momentum and maps."""
    model = _model(name, way)
    with on_a_gpu(model, bfloat16) as device, Peak() as peak:
        for p in model.parameters():
            peak.add(p)
        opt = "agc-sgd" if name in VARIANTS else "sgd"
        optimizer = create_optimizer_v2(model, opt, lr=0.1, momentum=0.9)
        images = torch.empty(batch, 3, pixels, pixels, device=device)
        for _ in range(2):  # the first has no momentum yet
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model(images)
            logits.backward(torch.empty_like(logits))
            del logits
            optimizer.step()
            optimizer.zero_grad()
    return peak.peak + ema * sum(p.nbytes for p in model.parameters())


def inference_peak(name: str, batch: int, pixels: int, bfloat16: bool) -> int:
    """Return the bytes of a forward pass without gradients: parameters and maps."""
    model = _model(name, WAYS[0]).eval()
    with on_a_gpu(model, bfloat16) as device, Peak() as peak, torch.no_grad():
        for p in model.parameters():
            peak.add(p)
        images = torch.empty(batch, 3, pixels, pixels, device=device)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            model(images)
    return peak.peak


def footprint(name: str, way: str) -> dict[str, float]:
    """Return the bytes of a step in bfloat16 autocast at the training size, with SGD, momentum and EMA.

    ``state``: three float32 of each parameter: itself, its momentum and average (gradients take the place of maps);
    ``fixed``: all that does not grow with the batch, the state included; ``each``: of one image.
    """
    pixels = VARIANTS[name].train_size
    small, large = (training_peak(name, way, batch, pixels, True, ema=True) for batch in (128, 256))
    state = 12 * sum(p.numel() for p in _model(name, way).parameters())
    return {"state": state, "fixed": small - (large - small), "each": (large - small) / 128}


def largest_batch(bytes_of: dict[str, float], gib: float, shards: int = 1) -> int:
    """Return the largest batch that fits into ``gib``, where FSDP2 spreads the state over ``shards`` processes."""
    fixed = bytes_of["fixed"] - bytes_of["state"] * (1 - 1 / shards)
    return max(int((gib * GIB - fixed) // bytes_of["each"]), 0)


def _model(name: str, way: str) -> nn.Module:
    options = {"recompute_acts": True} if way == "recompute_acts" else {}
    model: Any = timm.create_model(name, device="meta", **options)  # type: ignore[arg-type]
    model.train()
    if way == "set_grad_checkpointing":
        model.set_grad_checkpointing()
    return model


def table(args: argparse.Namespace) -> str:
    """Return the peaks of a network and timm's of the same name, in Markdown."""
    pixels = args.pixels or VARIANTS[args.name].train_size
    bfloat16 = args.dtype == "bfloat16"
    timms = f"dm_{args.name}" if f"dm_{args.name}" in timm.list_models("dm_nfnet_*") else None
    lines = [
        f"Peak memory, predicted: {args.name}, batch {args.batch}, {pixels} pixels, {args.dtype}; training with SGD, "
        "momentum and clipping. GiB, without CUDA's context and the workspaces of convolutions.",
        "",
        "| | this package | timm |",
        "|---|---:|---:|",
    ]
    rows: list[tuple[str, Any]] = [
        (f"training step, {way}", lambda name, way=way: training_peak(name, way, args.batch, pixels, bfloat16))
        for way in WAYS
    ]
    rows.append(("inference", lambda name: inference_peak(name, args.batch, pixels, bfloat16)))
    for title, predict in rows:
        has_peer = timms is not None and "recompute_acts" not in title
        theirs = f"{predict(timms) / GIB:.2f}" if has_peer else ""
        lines.append(f"| {title} | {predict(args.name) / GIB:.2f} | {theirs} |")
    return "\n".join(lines)


def main() -> None:
    """Predict what each NFNet takes, and write it."""
    parse_nothing(__doc__)
    found = {}
    for i in range(8):
        for way in WAYS[:2]:
            found[f"nfnet_f{i}, {way}"] = footprint(f"nfnet_f{i}", way)
            print(f"nfnet_f{i}, {way}", found[f"nfnet_f{i}, {way}"], flush=True)
    path = Path(__file__).parent.parent / "benchmarks" / "memory.json"
    write_text(path, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

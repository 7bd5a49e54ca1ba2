"""Predicts the peak memory of a training step, without allocating anything.

    python scripts/benchmarks/memory.py --name nfnet_f3 --batch 16
    python scripts/benchmarks/memory.py --all       each NFNet; the table in docs/speed.md is made from it

The step runs on tensors without data, on the code path of a GPU. The sizes of all storages that are alive are added up.
The CUDA context, the workspaces of convolutions and the unused memory of an allocator are not included.
"""

from __future__ import annotations

import argparse
import weakref
from typing import Any

import timm
import torch
from launches import on_a_gpu
from results import RESULTS, new_file, positive, run, write_json
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nfnet_timm.models.variants import VARIANTS

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


def training_peak(name: str, way: str, batch: int, pixels: int, bfloat16: bool) -> int:
    """Return the bytes of a step of SGD with momentum and clipping: parameters, gradients, momentum and maps."""
    model = _model(name, way)
    with on_a_gpu(model, bfloat16) as device, Peak() as peak:
        for p in model.parameters():
            peak.add(p)
        optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.1, momentum=0.9)
        images = torch.empty(batch, 3, pixels, pixels, device=device)
        for _ in range(2):  # the first has no momentum yet
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model(images)
            logits.backward(torch.empty_like(logits))
            del logits
            optimizer.step()
            optimizer.zero_grad()
    return peak.peak


def footprint(name: str, way: str) -> dict[str, float]:
    """Return the bytes of a step in bfloat16 autocast at the training size, with SGD, momentum and EMA.

    ``state``: three float32 of each parameter: itself, its momentum and average (gradients take the place of maps);
    ``fixed``: all that does not grow with the batch, the state included; ``each``: of one image.
    """
    small, large = (training_peak(name, way, batch, VARIANTS[name].train_size, True) for batch in (128, 256))
    weights = sum(p.nbytes for p in _model(name, way).parameters())
    return {"state": 3 * weights, "fixed": small + weights - (large - small), "each": (large - small) / 128}


def _model(name: str, way: str) -> nn.Module:
    model: Any = timm.create_model(name, device="meta", recompute_acts=way == "recompute_acts")
    model.train().set_grad_checkpointing(way == "set_grad_checkpointing")
    return model


def main() -> None:
    """Predict one network, or each NFNet for the table in docs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="each NFNet: bytes of a step, and of each image more")
    parser.add_argument("--name", default="nfnet_f0", help="a network of this package (%(default)s)")
    parser.add_argument("--batch", type=positive, default=8, help="images (%(default)s)")
    parser.add_argument("--pixels", type=positive, help="height and width of the images (those of training)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    parser.add_argument("--json", type=new_file, help="file for the bytes (--all: benchmarks/results/memory.json)")
    args = parser.parse_args()
    if args.name not in VARIANTS:
        parser.error(f"--name {args.name}: expected one of {', '.join(VARIANTS)}")
    found: dict[str, Any] = {}
    if args.all:
        for name in (f"nfnet_f{i}" for i in range(8)):
            for way in WAYS[:2]:
                found[f"{name}, {way}"] = footprint(name, way)
                print(f"{name}, {way}", found[f"{name}, {way}"], flush=True)
        write_json(args.json or RESULTS / "memory.json", found)
        return
    settings = args.batch, args.pixels or VARIANTS[args.name].train_size, args.dtype == "bfloat16"
    for way in WAYS:
        found[f"training step, {way}"] = training_peak(args.name, way, *settings)
    print(f"Peak memory: {args.name}, batch {args.batch}, {settings[1]} pixels, {args.dtype}; SGD with momentum")
    for label, size in found.items():
        print(f"{label:37} {size / 2**30:6.2f} GiB")
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run(main)

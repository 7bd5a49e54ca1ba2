"""Predicts the peak memory of a training step and of inference, without allocating anything.

    python scripts/benchmarks/memory.py --name nfnet_f3 --batch 16
    python scripts/benchmarks/memory.py --all       each NFNet; the table in docs/speed.md is made from it

The step runs on tensors without data, on the code path of a GPU. The sizes of all storages that are alive are added up.
The CUDA context, the workspaces of convolutions and the unused memory of an allocator are not included.
"""

from __future__ import annotations

import argparse
import weakref
from pathlib import Path
from typing import Any

import timm
import torch
from launches import on_a_gpu
from results import RESULTS, new_file, positive, run, table, write_json
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


def _model(name: str, way: str) -> nn.Module:
    options = {"recompute_acts": True} if way == "recompute_acts" else {}
    model: Any = timm.create_model(name, device="meta", **options)  # type: ignore[arg-type]
    model.train()
    if way == "set_grad_checkpointing":
        model.set_grad_checkpointing()
    return model


def peaks(name: str, batch: int, pixels: int, bfloat16: bool) -> dict[str, int]:
    """Return the bytes of a training step in each way that the network has, and of inference."""
    ways = [way for way in WAYS if way != "recompute_acts" or name in VARIANTS]  # timm's networks lack this option
    found = {f"training step, {way}": training_peak(name, way, batch, pixels, bfloat16) for way in ways}
    return {**found, "inference": inference_peak(name, batch, pixels, bfloat16)}


def main() -> None:
    """Predict one network beside timm's, or each NFNet for the table in docs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="each NFNet: bytes of a step, and of each image more")
    parser.add_argument("--name", default="nfnet_f0", help="a network of this package (%(default)s)")
    parser.add_argument("--batch", type=positive, default=8, help="images (%(default)s)")
    parser.add_argument("--pixels", type=positive, help="height and width of the images (those of training)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    parser.add_argument(
        "--json", type=new_file, help="file to write the bytes to (--all: benchmarks/results/memory.json)"
    )
    args = parser.parse_args()
    if args.name not in VARIANTS:
        parser.error(f"--name {args.name}: expected one of {', '.join(VARIANTS)}")
    if args.all:
        predict_all(args.json or RESULTS / "memory.json")
        return
    pixels = args.pixels or VARIANTS[args.name].train_size
    settings = args.batch, pixels, args.dtype == "bfloat16"
    ours = peaks(args.name, *settings)
    timms = f"dm_{args.name}"
    theirs = peaks(timms, *settings) if timms in timm.list_models("dm_nfnet_*") else {}
    print(f"Peak memory in GiB: {args.name}, batch {args.batch}, {pixels} pixels, {args.dtype}.")
    print("Training is by SGD with momentum and clipping.\n")
    rows = [
        [label, f"{size / GIB:.2f}", f"{theirs[label] / GIB:.2f}" if label in theirs else ""]
        for label, size in ours.items()
    ]
    print(table(["", "this package:", "timm:"], rows))
    if args.json:
        write_json(args.json, ours)


def predict_all(path: Path) -> None:
    """Predict each NFNet, and write the results."""
    found = {}
    for i in range(8):
        for way in WAYS[:2]:
            label = f"nfnet_f{i}, {way}"
            found[label] = footprint(f"nfnet_f{i}", way)
            print(label, found[label], flush=True)
    write_json(path, found)


if __name__ == "__main__":
    run(main)

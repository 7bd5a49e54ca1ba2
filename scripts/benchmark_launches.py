"""What eager mode asks of a GPU in one training step, counted without one: operations that launch, and bytes they move.

In float32 on the meta device, which takes the path of a GPU. Autocast is not to be had there: under it, the tensors are
torch's fake ones of a CPU, with the casts of a CPU's autocast, and are told to take the path of a GPU.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import timm
import torch
from common import explain_module
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.optim.agc import adaptive_clip_grad_

# Operations that are no view, and launch nothing all the same.
NOTHING = {
    *("_unsafe_view", "_reshape_alias", "reshape", "lift_fresh", "detach", "empty", "empty_like", "new_empty"),
    *("empty_strided", "is_same_size", "promote_types", "sym_size", "sym_numel", "device"),
}
HOST_READS = {"_local_scalar_dense", "item", "is_nonzero", "equal"}


class Launches(TorchDispatchMode):
    """Counts operations, and the bytes of their arguments and results, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and count it."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in NOTHING:
            self.names[name] += 1
            tensors = [x for x in tree_leaves((args, kwargs or {}, out)) if isinstance(x, Tensor)]
            self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors)
        return out

    @property
    def total(self) -> int:
        """Number of operations."""
        return self.names.total()

    @property
    def host_reads(self) -> int:
        """Number of those for which the host waits."""
        return sum(self.names[name] for name in HOST_READS)


@contextmanager
def on_a_gpu(model: nn.Module, bfloat16: bool) -> Iterator[str]:
    """Let ``model``, which is on the meta device, take the path of a GPU; give the device of its inputs."""
    if not bfloat16:
        yield "meta"
        return
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
        for function, answer in (
            ("standardize.is_eager_on_cpu", False),
            ("standardize.is_on_a_device", True),
            ("gelu.is_eager_on_cpu", False),
            ("clip.is_on_a_device", True),
        ):
            stack.enter_context(mock.patch(f"nfnet_timm.kernels.{function}", lambda x, answer=answer: answer))
        model.to_empty(device="cpu")
        yield "cpu"


def step(name: str, clip: Any, batch: int, pixels: int, bfloat16: bool) -> dict[str, Launches]:
    """Return what the forward, the backward pass and the clipping of one training step of ``name`` launch."""
    counted = {part: Launches() for part in ("forward", "backward", "clipping")}
    model: nn.Module = timm.create_model(name, device="meta").train()
    with on_a_gpu(model, bfloat16) as device:
        images = torch.empty(batch, 3, pixels, pixels, device=device)
        with counted["forward"], torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        grad = torch.empty_like(logits)
        with counted["backward"]:
            logits.backward(grad)
        clipped = [p for key, p in model.named_parameters() if not key.startswith("head.fc")]
        with counted["clipping"]:
            clip(clipped)
    return counted


def table(args: argparse.Namespace) -> str:
    """Return the table of our network and timm's, in Markdown."""
    pixels = args.pixels or VARIANTS[f"nfnet_{args.size}"].train_size
    bfloat16 = args.dtype == "bfloat16"
    ours = step(f"nfnet_{args.size}", adaptive_clip_grad_, args.batch, pixels, bfloat16)
    theirs = step(f"dm_nfnet_{args.size}", adaptive_clip_grad, args.batch, pixels, bfloat16)
    how = "bfloat16 autocast, by a CPU's rules" if bfloat16 else "float32"
    lines = [
        f"Operations that a GPU is asked for in eager mode, counted: {args.size.upper()}, batch {args.batch}, "
        f"{pixels} pixels, {how}. Views are not counted; bytes are those of arguments and results.",
        "",
        "| | this package | timm | this package, GB | timm, GB | host reads |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for part, found in ours.items():
        peer = theirs[part]
        volumes = f"{found.bytes.total() / 1e9:.2f} | {peer.bytes.total() / 1e9:.2f}"
        lines.append(f"| {part} | {found.total} | {peer.total} | {volumes} | {found.host_reads} |")
    lines += ["", "Of this package's, the most frequent:", ""]
    for part, found in ours.items():
        frequent = ", ".join(f"{name} {count}" for name, count in found.names.most_common(8))
        lines.append(f"- {part}: {frequent}")
    return "\n".join(lines)


if __name__ == "__main__":
    explain_module(__doc__, "scripts/benchmark.py launches")

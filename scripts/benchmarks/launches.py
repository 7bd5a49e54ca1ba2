"""Counts what a GPU is asked for in a training step in eager mode: operations, and the bytes they move. Needs no GPU.

    python scripts/benchmarks/launches.py                    NFNet-F0, batch 8, float32
    python scripts/benchmarks/launches.py --dtype bfloat16   under autocast

float32 runs on the meta device, which takes the code path of a GPU. The meta device has no autocast. bfloat16 therefore
runs on torch's fake CPU tensors, with the casts of a CPU's autocast, and with our code path of a GPU.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import timm
import torch
from results import new_file, run, table, write_json
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nfnet_timm.optim.agc import adaptive_clip_grad_

BATCH, PIXELS = 8, 192

# Operations that launch nothing although they are no views.
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


@contextmanager
def on_a_gpu(model: nn.Module, bfloat16: bool) -> Iterator[str]:
    """Let ``model``, which is on the meta device, take the code path of a GPU; yield the device of its inputs."""
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


def count(name: str, clip: Callable[[Any], Any], bfloat16: bool) -> dict[str, dict[str, Any]]:
    """Return operations, bytes and host reads of the parts of one training step of ``name``."""
    counted = {part: Launches() for part in ("forward", "backward", "clipping")}
    model = timm.create_model(name, device="meta").train()
    with on_a_gpu(model, bfloat16) as device:
        images = torch.empty(BATCH, 3, PIXELS, PIXELS, device=device)
        with counted["forward"], torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(images)
        grad = torch.empty_like(logits)
        with counted["backward"]:
            logits.backward(grad)
        clipped = [p for key, p in model.named_parameters() if not key.startswith("head.fc")]
        with counted["clipping"]:
            clip(clipped)
    return {
        part: {
            "operations": launches.names.total(),
            "bytes": launches.bytes.total(),
            "host_reads": sum(launches.names[name] for name in HOST_READS),
            "by_name": {name: [n, launches.bytes[name]] for name, n in launches.names.most_common()},
        }
        for part, launches in counted.items()
    }


def launches_table(counted: dict[str, dict[str, Any]]) -> str:
    """Return the table of our network and timm's, in Markdown."""
    rows = []
    for part, ours in counted["this package"].items():
        theirs = counted["timm"][part]
        volumes = [f"{found['bytes'] / 1e9:.2f}" for found in (ours, theirs)]
        rows.append([part, str(ours["operations"]), str(theirs["operations"]), *volumes, str(ours["host_reads"])])
    return table(["", "this package:", "timm:", "this package, GB:", "timm, GB:", "host reads:"], rows)


def main() -> None:
    """Count, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    parser.add_argument("--json", type=new_file, help="file to write the counts to")
    args = parser.parse_args()
    bfloat16 = args.dtype == "bfloat16"
    counted = {
        "this package": count("nfnet_f0", adaptive_clip_grad_, bfloat16),
        "timm": count("dm_nfnet_f0", adaptive_clip_grad, bfloat16),
    }
    print(f"Operations of a training step: F0, batch {BATCH}, {PIXELS} pixels, {args.dtype}.")
    print("Views are not counted; bytes are those of arguments and results.\n")
    print(launches_table(counted))
    if args.json:
        write_json(args.json, counted)


if __name__ == "__main__":
    run(main)

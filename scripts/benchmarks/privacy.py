"""Measures per-sample gradients with Opacus: time beside plain convolutions, and how memory grows with the batch.

    pip install '.[privacy]'                                in a clone
    python scripts/benchmarks/privacy.py                    some minutes: dm_nf_resnet50, batch 8, 96 pixels
    python scripts/benchmarks/privacy.py --name nfnet_f0 --batch 4

"Plain" is the same network with torch's convolutions instead of ours and frozen skip gains. Opacus then uses its own
grad samplers throughout. Repetitions alternate; ratios are medians with their range. --json adds the results to a file.
The table in docs/privacy.md is made from benchmarks/results/privacy.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from networks import peak_memory, with_skip_gains
from results import add_record, positive, records_file, run
from torch import nn

from nfnet_timm.installation import to_install
from nfnet_timm.layers.squeeze_excite import PixelConv2d
from nfnet_timm.layers.ws_conv import WSConv2d
from nfnet_timm.models.variants import VARIANTS

try:
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    import nfnet_timm.privacy  # noqa: F401  # registers
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: {to_install('privacy')}")

Step = Callable[[int], None]

# torch warns of its own hooks because the images need no gradient.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


def main() -> None:
    """Parse the command line, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", default="dm_nf_resnet50", help="a network of this package (%(default)s)")
    parser.add_argument("--batch", type=positive, default=8, help="images (%(default)s)")
    parser.add_argument("--pixels", type=positive, default=96, help="height and width of the images (%(default)s)")
    parser.add_argument("--repeat", type=positive, default=21, help="repetitions of each (%(default)s)")
    parser.add_argument("--json", type=records_file, help="file to add the results to")
    args = parser.parse_args()
    if args.name not in VARIANTS:
        parser.error(f"--name {args.name}: expected one of {', '.join(VARIANTS)}")
    what = {key: value for key, value in vars(args).items() if key != "json"}
    steps = steps_of(args)
    record: dict[str, Any] = {"what": what, "ratios": ratios(steps, args)}
    record["growth"] = {label: growth(steps[label], args.batch) for label in record["ratios"]}
    for label, (median, low, high) in record["ratios"].items():
        print(f"{label:38} {median:.2f} ({low:.2f} to {high:.2f}) times as long as plain convolutions with Opacus")
    for label, mib in record["growth"].items():
        print(f"{label:38} {mib:6.1f} MiB more at the peak for each image more")
    if args.json:
        add_record(args.json, record, lambda earlier: earlier["what"]["name"] == args.name)


def steps_of(args: argparse.Namespace) -> dict[str, Step]:
    """Return a step of the network for each way to compute gradients."""
    ways: dict[str, Callable[[nn.Module], Any]] = {
        "plain": lambda model: GradSampleModule(with_plain_convolutions(model)),
        "without privacy": lambda model: model,
        "ghost clipping's norms": GradSampleModuleFastGradientClipping,
        "per-sample gradients": GradSampleModule,
    }
    # In training mode, with skip gains above zero, so that the residual branches are switched on.
    networks = {label: way(with_skip_gains(args.name, 0.3, num_classes=10).train()) for label, way in ways.items()}
    return {label: partial(step, model, args.pixels) for label, model in networks.items()}


def ratios(steps: dict[str, Step], args: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Return how many times as long as with plain convolutions each takes: median, least, most."""
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for turn in range(args.repeat + 1):
        for label, run_step in steps.items():
            start = time.perf_counter()
            run_step(args.batch)
            if turn:  # the first is the warm-up
                seconds[label].append(time.perf_counter() - start)
    base = seconds.pop("plain")
    found = {label: sorted(a / b for a, b in zip(each, base, strict=True)) for label, each in seconds.items()}
    return {label: (statistics.median(each), each[0], each[-1]) for label, each in found.items()}


def growth(run_step: Step, batch: int) -> float:
    """Return how many MiB the peak grows by with each image more, from one to two batches of ``batch``."""
    once, twice = (peak_memory(partial(run_step, n), "cpu")["peak_mib"] for n in (batch, 2 * batch))
    return (twice - once) / batch


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """Replace our convolutions by torch's own, and freeze the parameters that no layer of torch has."""
    for key, p in model.named_parameters():
        p.requires_grad_(not key.endswith("skipinit_gain"))
    for parent in list(model.modules()):
        for key, conv in list(parent.named_children()):
            if isinstance(conv, (WSConv2d, PixelConv2d)):
                size, stride, half = conv.kernel_size[0], conv.stride[0], conv.kernel_size[0] // 2
                plain = nn.Conv2d(conv.in_channels, conv.out_channels, size, stride, half, groups=conv.groups)
                setattr(parent, key, plain)
    return model


def step(model: Any, pixels: int, batch: int) -> None:
    """Compute the gradients of a batch of random images."""
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, pixels, pixels), torch.randint(0, 10, (batch,))
    F.cross_entropy(model(x), y).backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    run(main)

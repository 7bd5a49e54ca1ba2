"""Measure and plot signal propagation through a network: the statistics of arXiv 2101.08692, section 3."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from nfnet_timm.models.block import NormFreeBlock

__all__ = ["SignalPropagation", "measure", "plot"]


@dataclass
class SignalPropagation:
    """The statistics from ``measure``: one value for the output of the stem, then one for the output of each block.

    Args:
        avg_sq_mean: Mean over channels of the squared channel mean.
        avg_var: Mean over channels of the channel variance.
        res_avg_var: The same variance of each block's residual branch, before stochastic depth, skip gain and alpha;
            one value less, because the stem has no residual branch.
    """

    avg_sq_mean: list[float] = field(default_factory=list)
    avg_var: list[float] = field(default_factory=list)
    res_avg_var: list[float] = field(default_factory=list)


@torch.no_grad()
def measure(model: nn.Module, x: Tensor) -> SignalPropagation:
    """Return the statistics of ``model`` on images (N, C, H, W), taken over N, H and W.

    Args:
        model: A network of this package, also with ``features_only=True``, or in a wrapper that timm's
            ``unwrap_model`` supports, such as ``DistributedDataParallel``.
    Raises:
        ValueError: If ``model`` has no block of this package.
    Source: ``signal_metrics`` in deepmind-research/nfnets/base.py, and ``res_avg_var`` of its blocks.
    """
    model = unwrap_model(model)
    blocks = [module for module in model.modules() if isinstance(module, NormFreeBlock)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no NormFreeBlock to measure: expected a network of nfnet_timm")
    result = SignalPropagation()

    def output(out: Tensor) -> None:
        result.avg_sq_mean.append(out.float().mean((0, 2, 3)).square().mean().item())
        result.avg_var.append(_avg_var(out))

    def residual(block: NormFreeBlock, conv3: nn.Module, args: Any, out: Tensor) -> None:
        gate = 1.0 if block.attn_last is None else block.attn_last(out)
        result.res_avg_var.append(_avg_var(out * gate))

    # The stem's output is the input of the first block. With features_only=True, no module is the whole stem.
    hooks = [blocks[0].register_forward_pre_hook(lambda block, args: output(args[0]))]
    for block in blocks:
        hooks.append(block.register_forward_hook(lambda block, args, out: output(out)))
        hooks.append(block.conv3.register_forward_hook(partial(residual, block)))
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return result


def plot(signals: dict[str, SignalPropagation], path: str | Path) -> None:
    """Write the signal propagation plot of the paper to an image file, with one line for each entry of ``signals``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    titles = {"avg_sq_mean": "average channel squared mean", "avg_var": "average channel variance"}
    titles["res_avg_var"] = "residual average channel variance"
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for label, signal in signals.items():
            values = getattr(signal, name)
            axes.plot(range(len(signal.avg_var) - len(values), len(signal.avg_var)), values, label=label)
        axes.set(title=title, xlabel="block (0: stem)")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _avg_var(x: Tensor) -> float:
    return x.float().var((0, 2, 3), correction=0).mean().item()

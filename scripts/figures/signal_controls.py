"""Shows what each ingredient of a Normalizer-Free network is for: the signal without it.

    python scripts/figures/signal_controls.py                  a minute on two cores

The statistics of arXiv 2101.08692, section 3, at initialisation, of NF-ResNet-50, NF-ResNet-200 and NFNet-F0 on
Gaussian noise. The skip gains are one, so that the residual branches are visible. The controls lack one ingredient
each: weight standardization, gamma, beta, or the skip gain of one (it is zero, as training starts).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import figures
import timm
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from nfnet_timm.layers.activations import activation
from nfnet_timm.layers.ws_conv import WSConv2d
from nfnet_timm.models.block import NormFreeBlock
from nfnet_timm.models.signal_propagation import measure as signal_of

NETWORKS = ("dm_nf_resnet50", "dm_nf_resnet200", "nfnet_f0")
CONTROLS = {
    "as published": "black",
    "without standardization": "tab:red",
    "without gamma": "tab:orange",
    "without beta": "tab:blue",
    "skip gain of zero": "tab:green",
}
ROWS = {
    "avg_sq_mean": "squared channel mean",
    "avg_var": "channel variance",
    "res_avg_var": "variance of the residual branch",
}


def main() -> None:
    """Measure, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32, help="images (%(default)s)")
    parser.add_argument("--pixels", type=int, default=96, help="height and width of the images (%(default)s)")
    figures.run(parser, "signal_controls", measure, draw)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the statistics of each network and control, by block."""
    settings = [(network, control) for network in NETWORKS for control in CONTROLS]
    signals: dict[str, dict[str, Any]] = {network: {} for network in NETWORKS}
    for network, control in tqdm(settings, unit="network"):
        torch.manual_seed(0)
        x = torch.randn(args.batch, 3, args.pixels, args.pixels)
        signals[network][control] = asdict(signal_of(without(network, control), x))
    return {"batch": args.batch, "pixels": args.pixels, "signals": signals}


def without(network: str, control: str) -> Any:
    """Return a network at initialisation without the ingredient that ``control`` names."""
    model: Any = timm.create_model(network, drop_path_rate=0.0).eval()
    _, gamma = activation("gelu_tanh" if network.startswith("nfnet") else "relu")
    blocks: list[Any] = [m for m in model.modules() if isinstance(m, NormFreeBlock)]
    for block in blocks:
        nn.init.constant_(block.skipinit_gain, 0.0 if control == "skip gain of zero" else 1.0)
        if control == "without beta":
            # These two read the block's input: their scale is gamma * beta.
            for conv in (block.conv1, *([block.downsample.conv] if block.downsample is not None else [])):
                conv.scale = gamma
    for conv in (m for m in model.modules() if isinstance(m, WSConv2d)):
        if control == "without gamma" and conv.scale != 1.0:
            conv.scale /= gamma
        if control == "without standardization":
            conv.__class__ = _Unstandardized
    return model


class _Unstandardized(WSConv2d):
    """A convolution whose weight has the variance of a standardized one but keeps its means."""

    def standardized_weight(self) -> Tensor:
        return self.weight * self.gain.view(-1, 1, 1, 1) * self.scale


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw a column for each network and a row for each statistic, a line for each control."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle("What each ingredient is for: the signal at initialisation, with it missing", fontweight="bold")
    grid = figure.subplots(len(ROWS), len(NETWORKS), sharex="col")
    for column, network in enumerate(NETWORKS):
        for row, (statistic, label) in enumerate(ROWS.items()):
            axes = grid[row, column]
            for control, color in CONTROLS.items():
                values = record["signals"][network][control][statistic]
                wide = {"linewidth": 2.5, "zorder": 3} if control == "as published" else {"linewidth": 1.2}
                axes.plot(values, color=color, label=control, **wide)
            axes.set_yscale("log")
            figures.clean(axes)
            if column == 0:
                axes.set_ylabel(label)
        grid[0, column].set_title(network)
        grid[-1, column].set_xlabel("block, 0 is the stem")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(CONTROLS), frameon=False
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()

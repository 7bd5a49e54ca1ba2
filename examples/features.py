"""Compute image embeddings and find the nearest neighbours of handwritten digits.

    pip install '.[demo]'     in a clone of nfnet_timm
    nfnet-timm demo
    python features.py --model local-dir:nfnet-demo/model     a network trained on digits
    python features.py --model nfnet_f0                       a network that was not trained on digits

The data are 1,797 scans of scikit-learn. Prints the share of 300 digits whose nearest neighbour is the same digit, and
draws some digits with their neighbours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

try:
    import timm
    import torch
    import torch.nn.functional as F
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from timm.data import resolve_model_data_config
    from torch import Tensor, nn
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: `pip install '.[demo]'` in a clone of nfnet_timm")


def main() -> None:
    """Compute vectors, look for neighbours, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nfnet_f0", help="a name, local-dir:FOLDER or hf-hub:ORG/NAME (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("neighbours.png"), help="the picture (%(default)s)")
    args = parser.parse_args()
    if not args.out.parent.is_dir():
        parser.error(f"--out {args.out}: there is no folder {args.out.parent}; make it first")
    if args.out.suffix not in (".png", ".pdf", ".svg") or args.out.is_dir():
        parser.error(f"--out {args.out}: expected a file that ends in .png, .pdf or .svg")
    data = load_digits()
    images, classes = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    try:
        model = timm.create_model(args.model, pretrained=True, num_classes=0).eval()
    except (RuntimeError, OSError, ValueError) as error:
        parser.error(f"--model {args.model}: {' '.join(str(error).split())[:200]}")
    vectors = F.normalize(embeddings(model, images))
    queries = torch.arange(0, len(images), 6)
    near = neighbours(vectors, queries, 5)
    same = (classes[near[:, 0]] == classes[queries]).float().mean().item()
    print(f"the nearest neighbour of {same:.1%} of {len(queries)} digits is the same digit; guessing gives about 10 %")
    figure = Figure(figsize=(6, 8.5), layout="constrained")
    figure.suptitle(f"Neighbours by {args.model}; red: another digit", wrap=True)
    draw(figure, images, classes, queries[:8], near[:8])
    figure.savefig(args.out, dpi=110)
    print(f"picture: {args.out}")


@torch.no_grad()
def embeddings(model: nn.Module, images: Tensor) -> Tensor:
    """Return the embedding of each grey image, (N, H, W) in 0 to 1, with the preprocessing of the network."""
    config = resolve_model_data_config(model)
    chans, height, _ = config["input_size"]
    size = min(height, 64)  # images of 8 x 8 pixels have no more detail
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    x = F.interpolate(images[:, None].expand(-1, chans, -1, -1), size=size, mode="bilinear")
    return torch.cat([model(part) for part in tqdm(((x - mean) / std).split(64), desc="embeddings", unit="batch")])


def neighbours(vectors: Tensor, queries: Tensor, count: int) -> Tensor:
    """Return, for each query, the indices of the ``count`` closest other vectors."""
    similarity = vectors[queries] @ vectors.T
    similarity[torch.arange(len(queries)), queries] = -1
    return similarity.topk(count).indices


def draw(figure: Any, images: Tensor, classes: Tensor, queries: Tensor, near: Tensor) -> None:
    """Draw a row for each query: the query and its neighbours. A red frame marks another digit."""
    axes = figure.subplots(len(queries), near.shape[1] + 1)
    for row, query, found in zip(axes, queries.tolist(), near.tolist(), strict=True):
        for axis, index in zip(row, [query, *found], strict=True):
            axis.imshow(images[index].numpy(), cmap="gray_r")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("tab:red" if classes[index] != classes[query] else "lightgrey")
            axis.spines[:].set_linewidth(2)
    for axis, text in zip(axes[0], ["query", "nearest", "second", "third", "fourth", "fifth"], strict=True):
        axis.set_title(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")

"""Compute image embeddings and find the nearest neighbours of handwritten digits.

    pip install '.[demo]'     in a clone of nfnet_timm
    nfnet-timm demo
    python features.py --model local-dir:nfnet-demo/model     a network trained on digits
    python features.py --model nfnet_f0                       a network that was not trained on digits

The data are 1,797 scans of scikit-learn. Prints the share of 300 digits whose nearest neighbour is the same digit, and
the neighbours of ten of them.
"""

from __future__ import annotations

import argparse
import sys

try:
    import timm
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits
    from timm.data import resolve_model_data_config
    from torch import Tensor, nn
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: `pip install '.[demo]'` in a clone of nfnet_timm")


def main() -> None:
    """Compute vectors, look for neighbours, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nfnet_f0", help="a name, local-dir:FOLDER or hf-hub:ORG/NAME (%(default)s)")
    args = parser.parse_args()
    data = load_digits()
    images, classes = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    try:
        model = timm.create_model(args.model, pretrained=True, num_classes=0).eval()
    except (RuntimeError, OSError, ValueError) as error:
        parser.error(f"--model {args.model}: {' '.join(str(error).split())[:200]}")
    vectors = F.normalize(embeddings(model, images))
    queries = torch.arange(0, len(images), 6)
    near = neighbours(vectors, queries, 5)
    for query, found in zip(queries[:10], near[:10], strict=True):
        print(f"the nearest neighbours of a {classes[query]}: {', '.join(str(int(c)) for c in classes[found])}")
    same = (classes[near[:, 0]] == classes[queries]).float().mean().item()
    print(f"the nearest neighbour of {same:.1%} of {len(queries)} digits is the same digit; guessing gives about 10 %")


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


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")

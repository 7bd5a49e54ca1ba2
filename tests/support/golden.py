"""Generates the same parameters and images for the authors' code and ours (see data/README.md)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"

# Name of the authors' network -> our name.
NETWORKS = {
    "nfnet_f0": "nfnet_f0",
    "nfnet_f1": "nfnet_f1",
    "nfnet_f3": "nfnet_f3",
    "nfnet_f7": "nfnet_f7",
    "nf_resnet50": "dm_nf_resnet50",
    "nf_resnet101": "dm_nf_resnet101",
    "nf_resnet50_se": "dm_nf_seresnet50",
    "nf_regnet_b0": "dm_nf_regnet_b0",
}
TINY = {"depths": (1, 2, 2, 1), "channels": (32, 64, 96, 96), "group_size": 8, "num_classes": 10}


def parameter(module: str, name: str, shape: list[int]) -> np.ndarray:
    r = np.random.RandomState(zlib.crc32(f"{module}/{name}".encode()))
    if name == "w" and len(shape) == 4:
        values = r.randn(*shape)
        fan_in = np.prod(shape[:3])
        std = fan_in**-0.5 * r.uniform(0.2, 1.5, size=shape[3])
        std[::17] *= 1e-3
        values = values * std + 0.1 * fan_in**-0.5
    elif name == "w":
        values = r.randn(*shape) * shape[0] ** -0.5
    elif name == "gain":
        values = r.uniform(0.5, 1.5, size=shape)
    elif name == "skip_gain":
        values = r.uniform(0.3, 1.0)
    else:
        values = 0.1 * r.randn(*shape)
    return np.asarray(values, dtype=np.float32)


def shapes(network: str) -> dict[str, dict[str, list[int]]]:
    return json.loads((DATA / f"{network}.shapes.json").read_text())


def tree(network: str) -> dict[str, dict[str, np.ndarray]]:
    return {m: {p: parameter(m, p, shape) for p, shape in ps.items()} for m, ps in shapes(network).items()}


def assert_same_tree(found: dict, expected: dict) -> None:
    """Assert that two trees have the same names, shapes, types and bits."""
    assert {m: set(ps) for m, ps in found.items()} == {m: set(ps) for m, ps in expected.items()}
    for module, params in expected.items():
        for name, array in params.items():
            other = found[module][name]
            assert (other.dtype, other.shape) == (array.dtype, array.shape)
            assert other.tobytes() == array.tobytes()


def images(spec: np.ndarray) -> torch.Tensor:
    """Return (n, 3, h, w) images for ``spec`` = [seed, n, h, w]."""
    seed, n, h, w = (int(x) for x in spec)
    nhwc = np.random.RandomState(seed).randn(n, h, w, 3).astype(np.float32)
    return torch.from_numpy(nhwc).permute(0, 3, 1, 2).contiguous()


def relative_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    """Return the L2 norm of the difference divided by that of ``expected``."""
    difference = actual.detach().double().numpy() - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))

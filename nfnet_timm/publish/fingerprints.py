"""Identifies files by their hashes, and models by their logits for a fixed image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nfnet_timm.formats.progress import bytes_bar
from nfnet_timm.formats.typed import check_types

__all__ = ["RECORDED", "check_logits", "identify", "logits_of", "recorded_logits"]

# publish writes the first logits, this many, to the header of model.safetensors.
RECORDED = 8


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    """Return the logits (num_classes,) of a model in eval mode for a fixed image of 64 x 64 pixels.

    For a model without classes, return its flattened features.
    """
    wave = torch.arange(model.in_chans * 64 * 64, dtype=torch.float32).mul_(0.37).sin_()
    return model(wave.view(1, model.in_chans, 64, 64))[0].flatten()


def check_logits(ours: Tensor, expected: Tensor) -> None:
    """Raise ValueError unless two models on one machine gave the same logits, to float32 rounding."""
    if ours.shape != expected.shape:
        raise ValueError(f"the logits have shape {list(ours.shape)}, expected {list(expected.shape)}")
    # They are not equal to the bit, because the order of a sum depends on the address of the tensor.
    tolerance = 1e-5 * float(expected.nan_to_num().abs().max())
    if not torch.allclose(ours, expected, rtol=1e-4, atol=tolerance, equal_nan=True):
        raise ValueError(f"the logits differ by up to {float((ours - expected).abs().max()):.1e}")


def recorded_logits(header: Mapping[str, str]) -> list[float] | None:
    """Return the logits that ``publish`` wrote to the header of model.safetensors; None if there are none.

    Raises:
        ValueError: If the entry is not a list of numbers.
    """
    if "logits" not in header:
        return None
    try:
        logits = json.loads(header["logits"])
        check_types({"logits": logits}, {"logits": list[float]}, "it")
        return [float(value) for value in logits]
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"the header of model.safetensors has logits that cannot be read: {error}") from None


def identify(path: Path) -> dict[str, str]:
    """Return the name, size and hashes of a file, in the form of the header of model.safetensors.

    For a directory, the size is the sum over its files. The SHA-256 is that of the output of ``sha256sum`` for these
    files, sorted by name. There is no MD5.
    """
    name = os.path.basename(os.path.abspath(path))  # the name of the current folder for "."
    name = name.encode(errors="replace").decode()  # no safetensors header has characters that UTF-8 cannot encode
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        listing = "".join(f"{_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in files)
        size, sha256 = sum(p.stat().st_size for p in files), hashlib.sha256(listing.encode())
        return {"source": name, "source_bytes": str(size), "source_sha256": sha256.hexdigest()}
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    _feed(path, sha256, md5)
    return {
        "source": name,
        "source_bytes": str(path.stat().st_size),
        "source_sha256": sha256.hexdigest(),
        "source_md5": md5.hexdigest(),
    }


def _sha256(path: Path) -> str:
    sha256 = hashlib.sha256()
    _feed(path, sha256)
    return sha256.hexdigest()


def _feed(path: Path, *hashes: Any) -> None:
    """Update ``hashes`` with the content of a file in one pass, each hash in its own thread."""
    bar = bytes_bar(path.stat().st_size, f"hashing {path.name}")
    with path.open("rb") as file, bar, ThreadPoolExecutor(len(hashes)) as pool:
        while chunk := file.read(1 << 22):
            list(pool.map(lambda h, chunk=chunk: h.update(chunk), hashes))
            bar.update(len(chunk))

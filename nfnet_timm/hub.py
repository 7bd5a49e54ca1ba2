"""A model as a folder in the Hub's layout: what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

__all__ = ["save_folder"]

_FILES = ("model.safetensors", "config.json")


def save_folder(
    model: nn.Module,
    folder: str | Path,
    model_args: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``model`` to ``folder`` as model.safetensors and config.json, both or neither.

    Args:
        model_args: Arguments of ``create_model`` beside the name, needed to build the model again.
        metadata: Strings for the header of model.safetensors, beside ``format: pt``.
    Raises:
        ValueError: If ``folder`` holds anything else; nothing is written then.
    Differs from timm: ``save_for_hf`` writes no metadata, without which some readers refuse the file, and by default a
        pickle beside it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder, new or empty")
    others = sorted(p.name for p in folder.iterdir() if p.name not in _FILES) if folder.exists() else []
    if others:
        raise ValueError(f"{folder} holds other files ({', '.join(others[:3])}): expected a folder, new or empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt", **(metadata or {})})
        save_config_for_hf(model, partial / "config.json", model_args=dict(model_args or {}))  # type: ignore[arg-type]
        folder.mkdir(exist_ok=True)
        for name in _FILES:
            os.replace(partial / name, folder / name)
    finally:
        shutil.rmtree(partial)

"""What timm's train.py saves, read without running anything that is in it.

Source: ``CheckpointSaver`` in timm/utils/checkpoint_saver.py.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch import Tensor

__all__ = ["TrainCheckpoint", "is_torch_file", "read_train_checkpoint"]


@dataclass(frozen=True)
class TrainCheckpoint:
    """One epoch of a run of train.py.

    Args:
        args: The options of the run.
        state_dict: The weights: their moving average (EMA), if the run kept one.
        ema: Whether they are that.
        epoch: Epoch after which they were saved, from 0.
        metric: What train.py measured by ``--eval-metric`` after that epoch, if it did.
    """

    args: dict[str, Any]
    state_dict: dict[str, Tensor]
    ema: bool
    epoch: int | None
    metric: float | None


def is_torch_file(path: Path) -> bool:
    """Tell whether ``path`` is a file of ``torch.save``."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())


def read_train_checkpoint(path: Path) -> TrainCheckpoint:
    """Return what a checkpoint of train.py holds.

    Raises:
        ValueError: If it is none, or holds anything but tensors, numbers, strings and the run's options.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # of the run's options
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of timm's train.py: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(saved, Mapping) or not {"state_dict", "args"} <= set(saved):
        raise ValueError(f"{path} has no 'state_dict' and 'args': expected a checkpoint that timm's train.py saved")
    ema = saved.get("state_dict_ema")
    state_dict: Any = clean_state_dict(ema if ema is not None else saved["state_dict"])
    return TrainCheckpoint(
        dict(vars(saved["args"])), state_dict, ema is not None, saved.get("epoch"), saved.get("metric")
    )

"""Reads checkpoints of timm's train.py and other files of ``torch.save``, and runs no code in them.

Source: ``CheckpointSaver`` in timm/utils/checkpoint_saver.py, ``load_state_dict`` in timm/models/_helpers.py.
"""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch import Tensor

from nfnet_timm.formats.typed import check_types

__all__ = ["TrainCheckpoint", "is_torch_file", "read_checkpoint"]

# The first bytes of files of torch.save before PyTorch 1.6: torch's magic number as a pickle of protocol 2.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP = b"PK\x03\x04"
# Keys of the weights in a checkpoint; the moving average first.
_WEIGHTS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")

# Options that affect the published model, with their types in train.py. In a YAML file for --config, the class map may
# be a mapping.
_OPTIONS = {
    "model": str,
    "model_kwargs": dict[str, Any] | None,
    "in_chans": int | None,
    "num_classes": int | None,
    "input_size": tuple[int, int, int] | None,
    "img_size": int | None,
    "gp": str | None,
    "mean": tuple[float, ...] | None,
    "std": tuple[float, ...] | None,
    "crop_pct": float | None,
    "interpolation": str | None,
    "pretrained": bool | None,
    "pretrained_path": str | None,
    "model_ema_force_cpu": bool | None,
    "data": str | None,
    "data_dir": str | None,
    "dataset": str | None,
    "train_split": str | None,
    "val_split": str | None,
    "val_num_samples": int | None,
    "class_map": str | dict[Any, Any] | None,
    "input_key": str | None,
    "eval_metric": str | None,
    "tta": int | None,
    "script": str,
}


@dataclass(frozen=True)
class TrainCheckpoint:
    """One epoch of a run of train.py.

    Args:
        args: The options of the run.
        state_dict: The moving average (EMA) of the weights if the run kept one, else the weights.
        ema: Whether ``state_dict`` is the moving average.
        epoch: The epoch after which the checkpoint was saved, counted from 0; None for a recovery checkpoint, which
            train.py saved before the end of an epoch.
        metric: The result of ``--eval-metric`` after that epoch; None if there is none.
    """

    args: dict[str, Any]
    state_dict: dict[str, Tensor]
    ema: bool
    epoch: int | None
    metric: float | None


def is_torch_file(path: Path) -> bool:
    """Return whether ``path`` is a file of ``torch.save``, complete or not: any zip archive except NumPy's .npz."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(256)  # contains the name of the first entry
    return head.startswith(_LEGACY) or (head.startswith(_ZIP) and b".npy" not in head)


def read_checkpoint(path: Path) -> TrainCheckpoint | dict[str, Tensor]:
    """Return the content of a checkpoint of train.py, or the state dict in another file of ``torch.save``.

    If the file contains a moving average (EMA), this is the state dict.

    Raises:
        ValueError: If the file is damaged, contains no state dict, or contains anything but tensors, numbers, strings
            and the options of a run.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP
    if is_zip:
        _check_archive(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # type of the options
            warnings.simplefilter("ignore")  # torch warns about some broken or hostile files
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch raises many types of errors for a broken or hostile pickle
        raise ValueError(f"{path} cannot be read as a checkpoint: {_reason(error)}") from None
    if not isinstance(saved, Mapping):
        raise ValueError(f"{path} contains {type(saved).__name__}: expected a state dict or a checkpoint with one")
    args = saved.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    if "state_dict" not in saved or not isinstance(args, dict) or "model" not in args:  # not of train.py
        found = [saved[key] for key in _WEIGHTS if isinstance(saved.get(key), Mapping)]
        return _arrays((found or [saved])[0], f"{path}: the state dict")
    check_types(args, _OPTIONS, f"{path}: args")
    ema, epoch, metric = (saved.get(key) for key in ("state_dict_ema", "epoch", "metric"))
    arrays = _arrays(saved["state_dict"] if ema is None else ema, f"{path}: 'state_dict'")
    return TrainCheckpoint(
        args,
        clean_state_dict(arrays),
        ema is not None,
        # Only recovery checkpoints have no metric.
        epoch if isinstance(epoch, int) and metric is not None else None,
        metric if isinstance(metric, int | float) else None,
    )


def _check_archive(path: Path) -> None:
    """Raise ValueError if a zip archive is incomplete or damaged. torch does not compare the CRCs in it."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is cut off: it has {path.stat().st_size:,} bytes, and the zip directory at its end is missing. "
            "Copy it again, or use an earlier checkpoint"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise zipfile.BadZipFile("its entries are compressed, as in TorchScript")
            # With torch.serialization.set_crc32_options(False), all CRCs are 0.
            if any(entry.CRC for entry in entries) and (bad := archive.testzip()):
                raise zipfile.BadZipFile(f"Bad CRC-32 for file {bad!r}")
    except Exception as error:  # zipfile raises many types of errors if its directory is damaged
        raise ValueError(
            f"{path} is damaged, or is not a file of torch.save: {error}. Copy it again, or use an earlier checkpoint"
        ) from None


def _arrays(weights: Any, where: str) -> dict[str, Tensor]:
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{where} has no arrays")
    for name, value in weights.items():
        is_dense = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
        # An expanded tensor has fewer values than its shape says, and a copy of it could need any amount of memory.
        if not isinstance(name, str) or not is_dense or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(
                f"{where} has the entry {str(name)[:80]!r}, which is {type(value).__name__}: expected names and dense "
                "tensors"
            )
    return dict(weights)


def _reason(error: Exception) -> str:
    """Return in one line why torch refuses a file, without torch's advice to load it with ``weights_only=False``."""
    text = str(error)
    if name := re.search(r"(?i)unsupported (?:global|class):? (?:GLOBAL )?(\S+)", text):
        reason = f"it contains {name[1]}, which could run code; expected tensors, numbers, strings and options"
    elif isinstance(error, RuntimeError):
        reason = text.split("\n")[0]
    else:
        detail = re.search(r"WeightsUnpickler error:\s*(.+)", text)
        reason = f"its pickle is broken, {detail[1] if detail else f'{type(error).__name__} {text}'}"
    return "".join(char if char.isprintable() else "?" for char in reason)[:300]

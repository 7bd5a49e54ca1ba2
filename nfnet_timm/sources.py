"""Weights that can be published, whatever they come in: one of the authors' files, a folder, a training checkpoint."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from timm.data import resolve_data_config
from timm.models import clean_state_dict
from timm.utils.misc import natural_key

from nfnet_timm.facts import load_facts
from nfnet_timm.folder import identify, load_folder
from nfnet_timm.haiku import load_model
from nfnet_timm.pretrained import check_state_dict
from nfnet_timm.variants import VARIANTS

__all__ = ["Source", "open_source"]


@dataclass
class Source:
    """A model in eval mode, and all that is known of it.

    Args:
        model_args: Arguments of ``create_model`` beside the name.
        metadata: What identifies the file that the weights come from: its name, bytes and SHA-256.
        checkpoint: The entry of hub/checkpoints.toml that it is, if it is one of the authors'.
        training: The options of timm's train.py, if that made it.
        ema: Whether the weights are the moving average; None if no train.py made them.
        metric: What train.py measured of these weights at ``epoch``, if it did.
    """

    model: Any
    model_args: dict[str, Any]
    metadata: dict[str, str]
    checkpoint: str | None = None
    label_names: list[str] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    ema: bool | None = None
    epoch: int | None = None
    metric: float | None = None

    def __post_init__(self) -> None:
        defaults = {"num_classes": 1000, "in_chans": 3, "global_pool": "avg"}  # a config.json has them all the same
        self.model_args = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.model_args.items()
            if defaults.get(key) != value
        }

    @property
    def architecture(self) -> str:
        """Name of the network in ``nfnet_timm.variants``."""
        return self.model.pretrained_cfg["architecture"]


def open_source(path: Path, class_names: Path | None = None) -> Source:
    """Return the model at ``path``: an authors' file, a folder written by convert, or a checkpoint of timm's train.py.

    Of a training checkpoint, the moving average (EMA) is preferred, and the preprocessing of the run kept. Class names
    come from ``class_names`` (a name a line), else from the run's class map or data folder where they are still there.

    Raises:
        ValueError: If it is none of these, or of another network.
    """
    if path.is_dir():
        source = _from_folder(path)
    elif _is_torch_file(path):
        source = _from_training(path)
    else:
        model, arguments = load_model(path)
        source = Source(model.eval(), arguments, identify(path))
    source.checkpoint = _recognise(source)
    if class_names is not None:
        source.label_names = _lines(class_names)
    if source.label_names is not None and len(source.label_names) != source.model.num_classes:
        raise ValueError(
            f"{len(source.label_names)} class names for {source.model.num_classes} classes: expected one a line"
        )
    return source


def _from_folder(folder: Path) -> Source:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: expected a folder written by `nfnet-timm convert`")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("architecture") not in VARIANTS:
        raise ValueError(
            f"{folder / 'config.json'} is of {config.get('architecture')!r}: expected a network of nfnet_timm"
        )
    with safe_open(folder / "model.safetensors", "pt") as weights:
        metadata = {k: v for k, v in (weights.metadata() or {}).items() if k.startswith("source")}
    names = config.get("label_names")
    return Source(
        load_folder(folder),
        dict(config.get("model_args", {})),
        metadata or identify(folder / "model.safetensors"),
        label_names=names if isinstance(names, list) else None,
    )


def _from_training(path: Path) -> Source:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # of the run's options
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of timm's train.py: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(checkpoint, Mapping) or not {"state_dict", "args"} <= set(checkpoint):
        raise ValueError(f"{path} has no 'state_dict' and 'args': expected a checkpoint that timm's train.py saved")
    args = dict(vars(checkpoint["args"]))
    name = args["model"].split(".")[0]
    if name not in VARIANTS:
        raise ValueError(
            f"{path} is a checkpoint of {args['model']!r}: expected a network of nfnet_timm, such as nfnet_f0"
        )
    ema = checkpoint.get("state_dict_ema")
    state_dict: Any = clean_state_dict(ema if ema is not None else checkpoint["state_dict"])
    arguments = dict(args.get("model_kwargs") or {})
    arguments.pop("recompute_acts", None)  # how it was trained, not what it is
    if args.get("in_chans"):
        arguments["in_chans"] = args["in_chans"]
    num_classes = len(state_dict["head.fc.bias"])
    if num_classes != 1000:
        arguments["num_classes"] = num_classes
    model: Any = timm.create_model(name, **arguments)
    model.load_state_dict(check_state_dict(state_dict, model, name))
    own_size = any(args.get(key) for key in ("img_size", "input_size"))
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        **resolve_data_config(args, model=model),
        "num_classes": num_classes,
    }
    model.pretrained_cfg.update(tag=None, hf_hub_id=None)
    if own_size:
        model.pretrained_cfg.update(test_input_size=None, pool_size=None)
    return Source(
        model.eval(),
        arguments,
        identify(path),
        label_names=_class_names(args, num_classes),
        training=args,
        ema=ema is not None,
        epoch=checkpoint.get("epoch"),
        metric=checkpoint.get("metric"),
    )


def _class_names(args: Mapping[str, Any], num_classes: int) -> list[str] | None:
    """Return the classes in the order of a train.py run, if its class map or data folder is still there."""
    class_map = Path(args.get("class_map") or "")
    if class_map.is_file() and class_map.suffix == ".txt":
        names = _lines(class_map)
        return names if len(names) == num_classes else None
    data = Path(args.get("data_dir") or args.get("data") or "")
    for split in (args.get("train_split"), args.get("val_split")):
        if split and (data / split).is_dir():
            names = sorted((p.name for p in (data / split).iterdir() if p.is_dir()), key=natural_key)
            if len(names) == num_classes:
                return names
    return None


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _recognise(source: Source) -> str | None:
    """Return which released checkpoint this is, by network, name of the file and, where it is known, its size."""
    for key, facts in load_facts()["checkpoints"].items():
        size = str(facts.get("bytes", source.metadata.get("source_bytes")))
        if (
            key.split(".")[0] == source.architecture
            and not source.model_args
            and source.metadata.get("source") == facts["file"]
            and source.metadata.get("source_bytes") == size
        ):
            return key
    return None


def _is_torch_file(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())

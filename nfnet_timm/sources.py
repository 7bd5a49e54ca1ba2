"""Weights that can be published, whatever they come in, and what is known of them.

They come as a file of the authors, an Orbax checkpoint, a folder of ``convert`` or a checkpoint of timm's train.py.
"""

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

from nfnet_timm.facts import load_facts, released_checkpoints
from nfnet_timm.folder import identify, load_folder
from nfnet_timm.haiku import load_model
from nfnet_timm.orbax_reader import is_orbax
from nfnet_timm.pretrained import check_state_dict
from nfnet_timm.variants import VARIANTS
from nfnet_timm.weights_file import arrays_hash

__all__ = ["Source", "open_authors", "open_source"]


@dataclass
class Source:
    """A model in eval mode, and all that is known of it.

    Args:
        model_args: Arguments of ``create_model`` beside the name.
        metadata: What identifies the file that the weights come from: its name, bytes, SHA-256 and MD5.
        checkpoint: The entry of hub/checkpoints.toml that it is, if it is one of the authors'.
        proven: Whether that is told by the file's hash, and not by who publishes it.
        training: The options of timm's train.py, if that made it.
        ema: Whether the weights are the moving average; None if no train.py made them.
        metric: What train.py measured of these weights at ``epoch``, if it did.
    """

    model: Any
    model_args: dict[str, Any]
    metadata: dict[str, str]
    checkpoint: str | None = None
    proven: bool = False
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

    def told(self) -> str:
        """Return, in a sentence, whether this is a released checkpoint, and by what that is told."""
        name, md5 = self.metadata.get("source"), self.metadata.get("source_md5")
        if self.checkpoint is not None and self.proven:
            return f"{name} is the file that the authors released as {self.checkpoint}, by its MD5 {md5}"
        if self.checkpoint is not None:
            return f"{name} is taken for the released {self.checkpoint} by your word: no recorded hash says so"
        if md5 is not None:
            return f"{name} is none of the released files, by its MD5 {md5}: weights of your own"
        return f"{name} is taken for weights of your own: no hash tells it to be a released checkpoint"

    @property
    def architecture(self) -> str:
        """Name of the network in ``nfnet_timm.variants``."""
        return self.model.pretrained_cfg["architecture"]


def open_source(path: Path, class_names: Path | None = None, checkpoint: str | None = None) -> Source:
    """Return the model at ``path``, whichever of the four it is.

    Of a training checkpoint, the moving average (EMA) is preferred, and the preprocessing of the run kept. Class names
    come from ``class_names`` (a name a line), else from the run's class map or data folder where they are still there.

    Args:
        checkpoint: The entry of hub/checkpoints.toml that it is, by the word of who publishes it; without, a file is
            told by its MD5, whatever its name and size.
    Raises:
        ValueError: If it is none of these, or of another network.
    """
    if path.is_dir() and not is_orbax(path):
        source = _from_folder(path)
    elif _is_torch_file(path):
        source = _from_training(path)
    else:
        source = open_authors(path)
    if checkpoint is not None and checkpoint != source.checkpoint:
        source.checkpoint, source.proven = _claimed(checkpoint, source), False
    if class_names is not None:
        source.label_names = _lines(class_names)
    if source.label_names is not None and len(source.label_names) != source.model.num_classes:
        raise ValueError(
            f"{len(source.label_names)} class names for {source.model.num_classes} classes: expected one a line"
        )
    return source


def open_authors(path: Path) -> Source:
    """Return the model in a file of the authors, or in an Orbax checkpoint.

    Raises:
        ValueError: If it is neither, or holds none of the authors' networks.
    """
    model, arguments = load_model(path)
    metadata = identify(path)
    source = Source(model.eval(), arguments, metadata)
    source.checkpoint = _recorded(metadata)
    source.proven = source.checkpoint is not None
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
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as file:
        header = file.metadata() or {}
    metadata = {k: v for k, v in header.items() if k.startswith("source")}
    # The header speaks of the arrays that convert wrote: they may have been changed under it.
    checkpoint = _recorded(metadata)
    if checkpoint is not None and header.get("arrays_sha256") != arrays_hash(weights):
        checkpoint = None
    names = config.get("label_names")
    return Source(
        load_folder(folder),
        dict(config.get("model_args", {})),
        metadata or identify(weights),
        checkpoint=checkpoint,
        proven=checkpoint is not None,
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


def _recorded(metadata: Mapping[str, str]) -> str | None:
    """Return which released file has these hashes."""
    for name, released in load_facts()["checkpoints"].items():
        if metadata.get("source_md5") == released["md5"]:
            return name
    return None


def _claimed(name: str, source: Source) -> str:
    """Return ``name`` if ``source`` can be that checkpoint."""
    known = released_checkpoints()
    if name not in known:
        raise ValueError(f"there is no released checkpoint {name!r}: expected one of {', '.join(known)}")
    # How many kinds of things ImageNet-21k has is nowhere stated.
    free = {"num_classes"} if name in load_facts()["orbax"] else set()
    if name.split(".")[0] != source.architecture or not set(source.model_args) <= free:
        differs = "".join(f", {key}={value!r}" for key, value in source.model_args.items())
        raise ValueError(f"this is no {name}: its arrays are those of {source.architecture}{differs}")
    return name


def _is_torch_file(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())

"""Reads and checks the folder of a model. Anybody may have written its config.json and its README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import timm
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from timm.data import str_to_interp_mode
from timm.models import PretrainedCfg

from nfnet_timm.formats.safetensors_file import read_layout
from nfnet_timm.formats.train_checkpoint import is_torch_file, read_checkpoint
from nfnet_timm.formats.typed import check_types
from nfnet_timm.models.nfnet import NormFreeNet
from nfnet_timm.models.state_dict import check_state_dict
from nfnet_timm.models.variants import VARIANTS, NormFreeCfg

__all__ = [
    "DEFAULTS",
    "LABELS",
    "Config",
    "card_metadata",
    "check_cfg",
    "check_preprocessing",
    "described_model",
    "is_ours",
    "load_folder",
    "read_card",
    "read_config",
    "read_json",
]

# Default values of arguments of timm.create_model.
DEFAULTS = {"num_classes": 1000, "in_chans": 3, "global_pool": "avg"}

# Arguments that a config.json may contain, with their types. The user who loads the model chooses device and dtype.
_ARGUMENTS = {
    **{k: v for k, v in get_type_hints(NormFreeNet.__init__).items() if k not in ("cfg", "device", "dtype", "kwargs")},
    **get_type_hints(NormFreeCfg),
}
# Entries of pretrained_cfg, with their types.
_PRETRAINED_CFG = get_type_hints(PretrainedCfg)
# Entries about the classes, with their types.
LABELS = {"label_names": list[str] | None, "label_descriptions": dict[str, str] | None}
# Entries of a card that check_folder requires, with their types.
_CARD = {"license": str | None, "library_name": str | None, "pipeline_tag": str | None, "tags": list[str] | None}


@dataclass(frozen=True)
class Config:
    """The content of a config.json in timm's schema. The facts are those of ``Source`` in sources.py."""

    architecture: str
    model_args: dict[str, Any]
    num_classes: int
    label_names: list[str] | None
    label_descriptions: dict[str, str] | None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: If it is not UTF-8, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains {type(content).__name__}, expected an object")
    return content


def is_ours(config: dict[str, Any]) -> bool:
    """Return whether the content of a config.json describes a network of this package."""
    return isinstance(config.get("architecture"), str) and config["architecture"] in VARIANTS


def read_config(path: Path) -> Config:
    """Return the content of a config.json as timm reads it. All values have the types that timm and the network expect.

    Raises:
        ValueError: If it does not describe a network of this package, or if a value has another type.
    Source: ``_parse_model_cfg`` in timm/models/_hub.py.
    """
    config = read_json(path)
    if not is_ours(config):
        raise ValueError(f"{path} is of {config.get('architecture')!r}: expected a network of nfnet_timm")
    # If there is no entry ``pretrained_cfg``, timm uses the whole config.json as pretrained_cfg.
    pretrained_cfg = config.get(
        "pretrained_cfg", {k: v for k, v in config.items() if k not in ("num_features", *LABELS)}
    )
    arguments = config.get("model_args", {})
    objects = {"pretrained_cfg": pretrained_cfg, "model_args": arguments}
    check_types(objects, dict.fromkeys(objects, dict), str(path))
    labels = {name: config.get(name, pretrained_cfg.get(name)) for name in LABELS}
    check_types({**config, **labels}, {"num_classes": int, **LABELS}, str(path))
    cfg = {k: v for k, v in pretrained_cfg.items() if k not in LABELS}
    check_cfg(cfg, f"{path}: pretrained_cfg")
    _check_entries(arguments, _ARGUMENTS, f"{path}: model_args")
    check_preprocessing({**PretrainedCfg().to_dict(), **cfg}, f"{path}: pretrained_cfg")
    num_classes = config.get("num_classes", cfg.get("num_classes", PretrainedCfg.num_classes))
    for name, value, expected in (
        ("pretrained_cfg.architecture", cfg.get("architecture"), config["architecture"]),
        ("model_args.num_classes", arguments.get("num_classes"), num_classes),
    ):
        if value not in (None, expected):
            raise ValueError(f"{path}: {name} is {value!r}, but another entry says {expected!r}")
    return Config(config["architecture"], arguments, num_classes, **labels)


def described_model(architecture: str, arguments: Mapping[str, Any], where: str) -> Any:
    """Return the network with these arguments, on the meta device. Anybody may have written the arguments.

    Args:
        where: Where the arguments come from, for the message.
    Raises:
        ValueError: If an argument is unknown or has another type, or if the network cannot be built.
    """
    _check_entries(arguments, _ARGUMENTS, where)
    try:
        model: Any = timm.create_model(architecture, device="meta", **arguments)
    except (ValueError, AssertionError, RuntimeError, TypeError, OverflowError) as error:  # of timm's layers or torch
        raise ValueError(f"{where}: {architecture} cannot be built: {' '.join(str(error).split())[:300]}") from None
    if model.num_classes and not model.head.global_pool.pool_type:
        raise ValueError(
            f"{where}: global_pool is '', so there is no pooling before the classifier: expected avg, max, avgmax or "
            "catavgmax, or num_classes=0"
        )
    return model


def load_folder(folder: str | Path) -> Any:
    """Return the model in ``folder``, pretrained and in eval mode.

    The weights are in model.safetensors, or in pytorch_model.bin, as timm's ``save_for_hf`` writes by default.

    Raises:
        ValueError: If config.json or the arrays are not those of a network of this package, or do not fit together.
    """
    path, weights, pickled = (Path(folder) / name for name in ("config.json", "model.safetensors", "pytorch_model.bin"))
    config = read_config(path)
    described = described_model(
        config.architecture, {**config.model_args, "num_classes": config.num_classes}, str(path)
    )
    if weights.is_file():
        arrays: Any = read_layout(weights)
    else:
        weights, arrays = pickled, read_checkpoint(pickled) if is_torch_file(pickled) else None
        if not isinstance(arrays, dict):
            raise ValueError(f"{weights} is not a state dict of torch.save: write model.safetensors instead")
    try:
        check_state_dict(arrays, described, config.architecture, exact=True)
    except ValueError as error:
        raise ValueError(f"{folder}: config.json and {weights.name} are of different networks: {error}") from None
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def check_preprocessing(cfg: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless timm can create transforms from a ``pretrained_cfg``."""
    for name in ("input_size", "test_input_size", "min_input_size", "std", "crop_pct", "test_crop_pct"):
        value = cfg.get(name)
        if value is not None and not min(value if isinstance(value, list | tuple) else [value], default=0) > 0:
            raise ValueError(f"{where}: {name} is {value!r}, expected numbers above 0")
    for name in ("mean", "std"):
        # timm keeps the three values of ImageNet if a network has another number of channels.
        if len(cfg[name]) not in (3, cfg["input_size"][0]):
            raise ValueError(f"{where}: {name} is {cfg[name]!r}, expected {cfg['input_size'][0]} numbers")
    try:
        str_to_interp_mode(cfg["interpolation"])
    except KeyError:
        raise ValueError(f"{where}: interpolation is {cfg['interpolation']!r}, expected bicubic or bilinear") from None


def read_card(path: Path) -> str:
    """Return the text of a README.md, with the line endings of the file.

    Raises:
        ValueError: If it is not UTF-8, or if ``card_metadata`` cannot read its metadata.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None
    card_metadata(text, str(path))
    return text


def card_metadata(text: str, where: str) -> dict[str, Any]:
    """Return the metadata of a model card (the YAML block at its top), or {} if there are none.

    Args:
        where: The name of the card in messages.
    Raises:
        ValueError: If the block is not YAML, or has entries of other types than the Hub expects.
    """
    block = REGEX_YAML_BLOCK.search(text)
    try:
        metadata = (yaml.safe_load(block[2]) if block else None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
            raise ValueError("expected a value for each name")
        check_types(metadata, _CARD, "between them")
        # Raises if the evaluation results are not in the Hub's form.
        results: Any = {"model-index": metadata.get("model-index")}
        ModelCardData(**results)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())  # YAML's message has several lines
        raise ValueError(f"the metadata of {where}, between its two ---, cannot be read: {reason}") from None
    return metadata


def check_cfg(cfg: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless ``cfg`` has only entries of timm's ``PretrainedCfg``, with its types."""
    _check_entries(cfg, _PRETRAINED_CFG, where)


def _check_entries(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    check_types(values, hints, where)
    if unknown := sorted(set(map(str, values)) - set(hints)):
        raise ValueError(f"{where}: unknown entry {unknown[0]!r}, expected {', '.join(hints)}")

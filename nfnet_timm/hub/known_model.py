"""A model that can be published, whatever its weights come in, and what is known of it.

They come as a file of the authors, an Orbax checkpoint, a folder of ``convert`` or a checkpoint of timm's train.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from nfnet_timm.formats.authors import is_of_authors
from nfnet_timm.formats.safetensors_writer import arrays_hash
from nfnet_timm.formats.train_checkpoint import is_torch_file, read_train_checkpoint
from nfnet_timm.hub.class_names import FoundNames, find_class_names
from nfnet_timm.hub.fingerprints import identify
from nfnet_timm.hub.folder import DEFAULTS, load_folder
from nfnet_timm.hub.published import load_published, released_checkpoints
from nfnet_timm.hub.train_script import Figure, figure_of, network_of
from nfnet_timm.models.build import load_model
from nfnet_timm.models.variants import VARIANTS

__all__ = ["KnownModel", "open_authors", "open_model"]


@dataclass
class KnownModel:
    """A model in eval mode, and all that is known of it.

    Args:
        model_args: Arguments of ``create_model`` beside the name.
        metadata: What identifies the file that the weights come from: its name, bytes, SHA-256 and MD5.
        checkpoint: The entry of hub/checkpoints.toml that it is, if it is a released one.
        proven: Whether that is told by the file's hash, and not by who publishes it.
        label_names, label_descriptions: Of the classes, in the order of the outputs; the words for each name.
        found_names: Names that were found on this computer, for the user to say whether they are right and public.
        card: The text of its model card, if it has one already.
        training: The options of timm's train.py, if that made it.
        ema: Whether the weights are the moving average; None if no train.py made them.
        figure: What train.py measured of these weights at ``epoch``, if it did.
    """

    model: Any
    model_args: dict[str, Any]
    metadata: dict[str, str]
    checkpoint: str | None = None
    proven: bool = False
    label_names: list[str] | None = None
    label_descriptions: dict[str, str] | None = None
    found_names: FoundNames | None = None
    card: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    ema: bool | None = None
    epoch: int | None = None
    figure: Figure | None = None

    def __post_init__(self) -> None:
        # The config.json of others has the defaults, too.
        self.model_args = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.model_args.items()
            if DEFAULTS.get(key) != value
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
        """Name of the network in ``nfnet_timm.models.variants``."""
        return self.model.pretrained_cfg["architecture"]


def open_model(path: Path, checkpoint: str | None = None) -> KnownModel:
    """Return the model at ``path``, whichever of the four it is.

    Of a training checkpoint, the moving average (EMA) is preferred, and the preprocessing of the run kept.

    Args:
        checkpoint: The entry of hub/checkpoints.toml that it is, by the word of who publishes it; without, a file is
            told by its MD5, whatever its name and size.
    Raises:
        ValueError: If it is none of these, or of another network.
    """
    if is_torch_file(path):
        known = _from_training(path)
    elif path.is_dir() and not is_of_authors(path):
        known = _from_folder(path)
    else:
        known = open_authors(path)
    if checkpoint is not None and checkpoint != known.checkpoint:
        known.checkpoint, known.proven = _claimed(checkpoint, known), False
    return known


def open_authors(path: Path) -> KnownModel:
    """Return the model in a file of the authors, or in an Orbax checkpoint.

    Raises:
        ValueError: If it is neither, or holds none of the authors' networks.
    """
    model, arguments = load_model(path)
    metadata = identify(path)
    checkpoint = _recorded(metadata)
    return KnownModel(model.eval(), arguments, metadata, checkpoint, checkpoint is not None)


def _from_folder(folder: Path) -> KnownModel:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: expected a folder written by `nfnet-timm convert`")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("architecture") not in VARIANTS:
        raise ValueError(
            f"{folder / 'config.json'} is of {config.get('architecture')!r}: expected a network of nfnet_timm"
        )
    weights, card = folder / "model.safetensors", folder / "README.md"
    with safe_open(weights, "pt") as file:
        header = file.metadata() or {}
    metadata = {k: v for k, v in header.items() if k.startswith("source")}
    # The header speaks of the arrays that convert wrote: they may have been changed under it.
    checkpoint = _recorded(metadata)
    if checkpoint is not None and header.get("arrays_sha256") != arrays_hash(weights):
        checkpoint = None
    names, descriptions = config.get("label_names"), config.get("label_descriptions")
    return KnownModel(
        load_folder(folder),
        dict(config.get("model_args", {})),
        metadata or identify(weights),
        checkpoint=checkpoint,
        proven=checkpoint is not None,
        label_names=names if isinstance(names, list) else None,
        label_descriptions=descriptions if isinstance(descriptions, dict) else None,
        card=card.read_text(encoding="utf-8") if card.exists() else None,
    )


def _from_training(path: Path) -> KnownModel:
    saved = read_train_checkpoint(path)
    try:
        model, arguments = network_of(saved)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return KnownModel(
        model,
        arguments,
        identify(path),
        found_names=find_class_names(saved.args, model.num_classes),
        training=saved.args,
        ema=saved.ema,
        epoch=saved.epoch,
        figure=figure_of(saved, model),
    )


def _recorded(metadata: Mapping[str, str]) -> str | None:
    """Return which released file has these hashes."""
    for name, released in load_published()["checkpoints"].items():
        if metadata.get("source_md5") == released["md5"]:
            return name
    return None


def _claimed(name: str, known: KnownModel) -> str:
    """Return ``name`` if ``known`` can be that checkpoint."""
    released = released_checkpoints()
    if name not in released:
        raise ValueError(f"there is no released checkpoint {name!r}: expected one of {', '.join(released)}")
    # How many kinds of things ImageNet-21k has is nowhere stated.
    free = {"num_classes"} if name in load_published()["orbax"] else set()
    if name.split(".")[0] != known.architecture or not set(known.model_args) <= free:
        differs = "".join(f", {key}={value!r}" for key, value in known.model_args.items())
        raise ValueError(f"this is no {name}: its arrays are those of {known.architecture}{differs}")
    return name

"""Reads the models that can be published, with the facts for their cards.

A source is a file of the authors, an Orbax checkpoint, a folder that ``convert`` wrote, or a checkpoint of timm's
train.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nfnet_timm.formats.authors import is_of_authors
from nfnet_timm.formats.safetensors_writer import arrays_hash, read_header
from nfnet_timm.formats.train_checkpoint import is_torch_file, read_train_checkpoint
from nfnet_timm.models.build import load_model
from nfnet_timm.publish.checkpoints import load_published, released_checkpoints
from nfnet_timm.publish.class_names import FoundNames, find_class_names
from nfnet_timm.publish.config_json import DEFAULTS, load_folder, read_config
from nfnet_timm.publish.fingerprints import identify, recorded_logits
from nfnet_timm.publish.readme import read_card
from nfnet_timm.publish.train_run import Accuracy, accuracy_of, network_of

__all__ = ["Source", "open_authors", "open_model"]


@dataclass
class Source:
    """A model in eval mode, and the facts about it.

    Args:
        model_args: Arguments of ``create_model`` other than the name.
        metadata: Name, bytes, SHA-256 and MD5 of the file that the weights come from.
        computed: Whether ``metadata`` was computed from that file. If not, it comes from the header of a folder's
            weights.
        checkpoint: The entry in hub/checkpoints.toml, for a released checkpoint.
        identified_by: The evidence that the weights are that entry: the file's MD5, the header of a folder's weights
            (which anybody may have written), or the user's word (``--checkpoint``).
        logits: The logits in the header of a folder's weights.
        label_names: Names of the classes, in the order of the outputs.
        label_descriptions: A longer description for each name.
        found_names: Names that were found on this computer. The user decides whether they are right and public.
        card: The text of the model card, if there is one already.
        training: The options of timm's train.py, if train.py trained the model.
        ema: Whether the weights are the moving average; None if train.py did not train the model.
        accuracy: The accuracy of these weights that train.py measured after ``epoch``, on images that were not used
            for training.
        left_out: Facts that are not published although the run may have had them, and why: one line each.
    """

    model: Any
    model_args: dict[str, Any]
    metadata: dict[str, str]
    computed: bool = True
    checkpoint: str | None = None
    identified_by: Literal["MD5", "header", "word"] | None = None
    logits: list[float] | None = None
    label_names: list[str] | None = None
    label_descriptions: dict[str, str] | None = None
    found_names: FoundNames | None = None
    card: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    ema: bool | None = None
    epoch: int | None = None
    accuracy: Accuracy | None = None
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Other programs also write default values to config.json; they are removed here.
        self.model_args = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.model_args.items()
            if DEFAULTS.get(key) != value
        }

    def origin(self) -> str:
        """Return one sentence: whether this is a released checkpoint, and what identifies it."""
        name, md5 = self.metadata.get("source"), self.metadata.get("source_md5")
        if self.identified_by == "MD5":
            return f"{name} is the file that the authors released as {self.checkpoint}: it has the recorded MD5 {md5}"
        if self.identified_by == "header":
            return (
                f"these are the weights of {name}, released as {self.checkpoint}, according to the header written at "
                "conversion; this was not recomputed, so the card has no published accuracy. To get it on the card, "
                f"publish {name} itself"
            )
        if self.identified_by == "word":
            return f"{name} is published as the released {self.checkpoint} on your word; no recorded hash confirms it"
        if not self.computed:
            return (
                f"weights of your own, made from {name} according to the header written at conversion; this was not "
                "recomputed"
            )
        if md5 is not None:
            return f"weights of your own: {name} has the MD5 {md5}, which no released file has"
        return f"weights of your own: no hash identifies {name} as a released checkpoint"

    @property
    def architecture(self) -> str:
        """Name of the network in ``nfnet_timm.models.variants``."""
        return self.model.pretrained_cfg["architecture"]


def open_model(path: Path, checkpoint: str | None = None) -> Source:
    """Return the model at ``path``, which may be any of the four types of sources.

    For a checkpoint of train.py, this is the moving average (EMA) if there is one, with the preprocessing of the run.

    Args:
        checkpoint: The entry in hub/checkpoints.toml that the weights are, on the user's word. If None, only the MD5
            of a file identifies it; its name and size do not matter.
    Raises:
        ValueError: If it is not one of the four types, or contains another network.
    """
    if is_torch_file(path):
        source = _from_training(path)
    elif path.is_dir() and not is_of_authors(path):
        source = _from_folder(path)
    else:
        source = open_authors(path)
    if checkpoint is not None and (checkpoint != source.checkpoint or source.identified_by != "MD5"):
        source.checkpoint, source.identified_by = _claimed(checkpoint, source), "word"
    return source


def open_authors(path: Path) -> Source:
    """Return the model in a file of the authors, or in an Orbax checkpoint.

    Raises:
        ValueError: If it is neither, or does not contain one of the authors' networks.
    """
    model, arguments = load_model(path)
    metadata = identify(path)
    checkpoint = _recorded(metadata)
    identified_by: Literal["MD5"] | None = "MD5" if checkpoint else None
    return Source(model.eval(), arguments, metadata, checkpoint=checkpoint, identified_by=identified_by)


def _from_folder(folder: Path) -> Source:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: expected a folder written by `nfnet-timm convert`")
    config, weights, card = read_config(folder / "config.json"), folder / "model.safetensors", folder / "README.md"
    header = read_header(weights)
    if header.get("arrays_sha256") not in (None, arrays_hash(weights)):
        raise ValueError(
            f"the arrays of {weights} do not have the hash in its header: the file is damaged or was changed. Convert "
            "or copy it again; if you changed the arrays yourself, save them without the entry arrays_sha256"
        )
    stated = _stated(header) if "arrays_sha256" in header else {}
    source = Source(
        load_folder(folder),
        {**config.model_args, "num_classes": config.num_classes},
        stated or identify(weights),
        computed=not stated,
        logits=recorded_logits(header) if stated else None,
        label_names=config.label_names,
        label_descriptions=config.label_descriptions,
        card=read_card(card) if card.exists() else None,
    )
    released = _recorded(stated)
    if released is not None and not _fits(released, source):
        # The header belongs to another network, so the card does not repeat it.
        source.metadata, source.computed = identify(weights), True
    elif released is not None:
        source.checkpoint, source.identified_by = released, "header"
    return source


def _stated(header: Mapping[str, str]) -> dict[str, str]:
    """Return the facts in a header about the file that the weights come from; {} if they are not well-formed."""
    forms = {
        "source": r"[^/\\]{1,255}",
        "source_bytes": r"\d{1,18}",
        "source_sha256": r"[0-9a-f]{64}",
        "source_md5": r"[0-9a-f]{32}",
    }
    found = {key: header[key] for key in forms if key in header}
    well_formed = all(re.fullmatch(forms[key], value) and value.isprintable() for key, value in found.items())
    return found if "source" in found and well_formed else {}


def _from_training(path: Path) -> Source:
    saved = read_train_checkpoint(path)
    try:
        model, arguments = network_of(saved)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names, accuracy = find_class_names(saved.args, model.num_classes), accuracy_of(saved, model)
    left_out = [f"no accuracy on the card: {accuracy}"] if isinstance(accuracy, str) else []
    left_out += [f"no class names: {names}; --class-names FILE gives them"] if isinstance(names, str) else []
    return Source(
        model,
        arguments,
        identify(path),
        found_names=names if isinstance(names, FoundNames) else None,
        training=saved.args,
        ema=saved.ema,
        epoch=saved.epoch,
        accuracy=accuracy if isinstance(accuracy, Accuracy) else None,
        left_out=left_out,
    )


def _recorded(metadata: Mapping[str, str]) -> str | None:
    """Return the name of the released file with this MD5; None if there is none."""
    for name, released in load_published()["checkpoints"].items():
        if metadata.get("source_md5") == released["md5"]:
            return name
    return None


def _claimed(name: str, source: Source) -> str:
    """Return ``name``; raise ValueError unless the architecture and arguments are those of that checkpoint."""
    if name not in released_checkpoints():
        raise ValueError(
            f"there is no released checkpoint {name!r}: expected one of {', '.join(released_checkpoints())}"
        )
    if not _fits(name, source):
        differs = "".join(f", {key}={value!r}" for key, value in source.model_args.items())
        raise ValueError(f"this is not {name}: its arrays are those of {source.architecture}{differs}")
    return name


def _fits(name: str, source: Source) -> bool:
    """Return whether the architecture and arguments are those of the released checkpoint ``name``."""
    # The number of classes of the ImageNet-21k checkpoints is not published.
    free = {"num_classes"} if name in load_published()["orbax"] else set()
    return name.split(".")[0] == source.architecture and set(source.model_args) <= free

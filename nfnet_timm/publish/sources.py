"""The models that can be published, with the facts about them that a card states.

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
        model_args: Arguments of ``create_model`` beside the name.
        metadata: Name, bytes, SHA-256 and MD5 of the file that the weights come from.
        computed: Whether ``metadata`` was computed from that file; else the header of a folder's weights states it.
        checkpoint: The entry of hub/checkpoints.toml, for a released checkpoint.
        identified_by: What identifies it as that entry: the file's MD5, the header of a folder's weights, which anybody may
            have written, or the word of the publisher.
        logits: The logits in the header of a folder's weights.
        label_names, label_descriptions: Names of the classes in the order of the outputs; more words for each name.
        found_names: Names that were found on this computer. The user decides whether they are right and public.
        card: The text of the model card, if there is one already.
        training: The options of timm's train.py, if that trained the model.
        ema: Whether the weights are the moving average; None if train.py did not train the model.
        figure: The accuracy that train.py measured of these weights at ``epoch``, on images that training did not see.
        left_out: What is not published although the run may have had it, and why, one line each.
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
    figure: Accuracy | None = None
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Other programs write the defaults into config.json, too.
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
                "conversion; this was not recomputed, so the card has no published accuracy. To have it there, publish "
                f"{name} itself"
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
    """Return the model at ``path``, of any of the four kinds.

    A training checkpoint gives its moving average (EMA), if it has one, and the preprocessing of the run.

    Args:
        checkpoint: The entry of hub/checkpoints.toml, on the word of the publisher; without it, the MD5 identifies a
            file, whatever its name and size.
    Raises:
        ValueError: If it is none of these, or of another network.
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
        ValueError: If it is neither, or holds none of the authors' networks.
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
        # The header belongs to another network, so nothing of it is repeated.
        source.metadata, source.computed = identify(weights), True
    elif released is not None:
        source.checkpoint, source.identified_by = released, "header"
    return source


def _stated(header: Mapping[str, str]) -> dict[str, str]:
    """Return the facts in a header about the file that the weights come from; {} if their form is not ours."""
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
    names, figure = find_class_names(saved.args, model.num_classes), accuracy_of(saved, model)
    left_out = [f"no accuracy on the card: {figure}"] if isinstance(figure, str) else []
    left_out += [f"no class names: {names}; --class-names FILE gives them"] if isinstance(names, str) else []
    return Source(
        model,
        arguments,
        identify(path),
        found_names=names if isinstance(names, FoundNames) else None,
        training=saved.args,
        ema=saved.ema,
        epoch=saved.epoch,
        figure=figure if isinstance(figure, Accuracy) else None,
        left_out=left_out,
    )


def _recorded(metadata: Mapping[str, str]) -> str | None:
    """Return the name of the released file with this MD5."""
    for name, released in load_published()["checkpoints"].items():
        if metadata.get("source_md5") == released["md5"]:
            return name
    return None


def _claimed(name: str, source: Source) -> str:
    """Return ``name`` if the architecture and arguments allow it."""
    if name not in released_checkpoints():
        raise ValueError(
            f"there is no released checkpoint {name!r}: expected one of {', '.join(released_checkpoints())}"
        )
    if not _fits(name, source):
        differs = "".join(f", {key}={value!r}" for key, value in source.model_args.items())
        raise ValueError(f"this is not {name}: its arrays are those of {source.architecture}{differs}")
    return name


def _fits(name: str, source: Source) -> bool:
    """Whether the architecture and arguments are those of the released checkpoint ``name``."""
    # The number of classes of the ImageNet-21k checkpoints is not published.
    free = {"num_classes"} if name in load_published()["orbax"] else set()
    return name.split(".")[0] == source.architecture and set(source.model_args) <= free

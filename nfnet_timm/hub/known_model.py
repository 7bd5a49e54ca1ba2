"""A model that can be published, whatever its weights come in, and what is known of it.

They come as a file of the authors, an Orbax checkpoint, a folder of ``convert`` or a checkpoint of timm's train.py.
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
from nfnet_timm.hub.class_names import FoundNames, find_class_names
from nfnet_timm.hub.config_json import read_config
from nfnet_timm.hub.fingerprints import identify, recorded_logits
from nfnet_timm.hub.folder import DEFAULTS, load_folder
from nfnet_timm.hub.published import load_published, released_checkpoints
from nfnet_timm.hub.readme import read_card
from nfnet_timm.hub.train_script import Figure, figure_of, network_of
from nfnet_timm.models.build import load_model

__all__ = ["KnownModel", "open_authors", "open_model"]


@dataclass
class KnownModel:
    """A model in eval mode, and all that is known of it.

    Args:
        model_args: Arguments of ``create_model`` beside the name.
        metadata: What identifies the file that the weights come from: its name, bytes, SHA-256 and MD5.
        computed: Whether ``metadata`` was computed of that file here; else it is from the header of a folder's weights.
        checkpoint: The entry of hub/checkpoints.toml that it is, if it is a released one.
        told_by: By what it is told to be that: the MD5 of the file, the header of a folder's weights, which anybody may
            have written, or the word of who publishes it.
        logits: Those in the header of a folder's weights.
        label_names, label_descriptions: Of the classes, in the order of the outputs; the words for each name.
        found_names: Names that were found on this computer, for the user to say whether they are right and public.
        card: The text of its model card, if it has one already.
        training: The options of timm's train.py, if that made it.
        ema: Whether the weights are the moving average; None if no train.py made them.
        figure: What train.py measured of these weights at ``epoch``, on images that training did not see.
        left_out: What is not published although a run of train.py might have had it, and why, in a line each.
    """

    model: Any
    model_args: dict[str, Any]
    metadata: dict[str, str]
    computed: bool = True
    checkpoint: str | None = None
    told_by: Literal["MD5", "header", "word"] | None = None
    logits: list[float] | None = None
    label_names: list[str] | None = None
    label_descriptions: dict[str, str] | None = None
    found_names: FoundNames | None = None
    card: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    ema: bool | None = None
    epoch: int | None = None
    figure: Figure | None = None
    left_out: list[str] = field(default_factory=list)

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
        if self.told_by == "MD5":
            return f"{name} is the file that the authors released as {self.checkpoint}, by its MD5 {md5}"
        if self.told_by == "header":
            return (
                f"these are the weights of {name}, which the authors released as {self.checkpoint}, according to the "
                "header written at conversion; this is not recomputed, so the card has no published accuracy. Publish "
                f"{name} itself to have it there"
            )
        if self.told_by == "word":
            return f"{name} is taken for the released {self.checkpoint} by your word: no recorded hash says so"
        if not self.computed:
            return (
                f"weights of your own, made from {name} according to the header written at conversion; this is not "
                "recomputed"
            )
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
    if checkpoint is not None and (checkpoint != known.checkpoint or known.told_by != "MD5"):
        known.checkpoint, known.told_by = _claimed(checkpoint, known), "word"
    return known


def open_authors(path: Path) -> KnownModel:
    """Return the model in a file of the authors, or in an Orbax checkpoint.

    Raises:
        ValueError: If it is neither, or holds none of the authors' networks.
    """
    model, arguments = load_model(path)
    metadata = identify(path)
    checkpoint = _recorded(metadata)
    told_by: Literal["MD5"] | None = "MD5" if checkpoint else None
    return KnownModel(model.eval(), arguments, metadata, checkpoint=checkpoint, told_by=told_by)


def _from_folder(folder: Path) -> KnownModel:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: expected a folder written by `nfnet-timm convert`")
    config, weights, card = read_config(folder / "config.json"), folder / "model.safetensors", folder / "README.md"
    header = read_header(weights)
    if header.get("arrays_sha256") not in (None, arrays_hash(weights)):
        raise ValueError(
            f"{weights} has other arrays than the hash in its header says: it is damaged, or was changed. Convert or "
            "copy it again; if you changed them yourself, save them without the entry arrays_sha256"
        )
    source = _source(header) if "arrays_sha256" in header else {}
    known = KnownModel(
        load_folder(folder),
        {**config.model_args, "num_classes": config.num_classes},
        source or identify(weights),
        computed=not source,
        logits=recorded_logits(header) if source else None,
        label_names=config.label_names,
        label_descriptions=config.label_descriptions,
        card=read_card(card) if card.exists() else None,
    )
    released = _recorded(source)
    if released is not None and not _fits(released, known):
        # The header is of another network: nothing in it is repeated.
        known.metadata, known.computed = identify(weights), True
    elif released is not None:
        known.checkpoint, known.told_by = released, "header"
    return known


def _source(header: Mapping[str, str]) -> dict[str, str]:
    """Return what the header of a folder's weights says of the file that they come from, if it has the form of ours."""
    forms = {
        "source": r"[^/\\]{1,255}",
        "source_bytes": r"\d{1,18}",
        "source_sha256": r"[0-9a-f]{64}",
        "source_md5": r"[0-9a-f]{32}",
    }
    found = {key: header[key] for key in forms if key in header}
    well_formed = all(re.fullmatch(forms[key], value) and value.isprintable() for key, value in found.items())
    return found if "source" in found and well_formed else {}


def _from_training(path: Path) -> KnownModel:
    saved = read_train_checkpoint(path)
    try:
        model, arguments = network_of(saved)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names, figure = find_class_names(saved.args, model.num_classes), figure_of(saved, model)
    left_out = [f"no accuracy on the card: {figure}"] if isinstance(figure, str) else []
    left_out += [f"no class names: {names}; --class-names FILE gives them"] if isinstance(names, str) else []
    return KnownModel(
        model,
        arguments,
        identify(path),
        found_names=names if isinstance(names, FoundNames) else None,
        training=saved.args,
        ema=saved.ema,
        epoch=saved.epoch,
        figure=figure if isinstance(figure, Figure) else None,
        left_out=left_out,
    )


def _recorded(metadata: Mapping[str, str]) -> str | None:
    """Return which released file has these hashes."""
    for name, released in load_published()["checkpoints"].items():
        if metadata.get("source_md5") == released["md5"]:
            return name
    return None


def _claimed(name: str, known: KnownModel) -> str:
    """Return ``name`` if ``known`` can be that checkpoint."""
    if name not in released_checkpoints():
        raise ValueError(
            f"there is no released checkpoint {name!r}: expected one of {', '.join(released_checkpoints())}"
        )
    if not _fits(name, known):
        differs = "".join(f", {key}={value!r}" for key, value in known.model_args.items())
        raise ValueError(f"this is no {name}: its arrays are those of {known.architecture}{differs}")
    return name


def _fits(name: str, known: KnownModel) -> bool:
    """Tell whether the architecture and arguments are those of a released checkpoint."""
    # How many kinds of things ImageNet-21k has is nowhere stated.
    free = {"num_classes"} if name in load_published()["orbax"] else set()
    return name.split(".")[0] == known.architecture and set(known.model_args) <= free

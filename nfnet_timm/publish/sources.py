"""Reads a model from a file or a folder, with the facts for its card.

A source is a file of the authors, an Orbax checkpoint, a folder that ``convert`` or timm's ``save_for_hf`` wrote, a
checkpoint of timm's train.py, or a state dict with the name of its network. in_memory.py reads a network in memory.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from nfnet_timm.formats.orbax_reader import is_orbax
from nfnet_timm.formats.safetensors_file import checked_header, read_arrays
from nfnet_timm.formats.train_checkpoint import TrainCheckpoint, is_torch_file, read_checkpoint
from nfnet_timm.models.build import load_model
from nfnet_timm.models.state_dict import infer_variant
from nfnet_timm.publish.checkpoints import load_published, released_checkpoints
from nfnet_timm.publish.class_names import FoundNames, find_class_names
from nfnet_timm.publish.fingerprints import identify, recorded_logits
from nfnet_timm.publish.read_folder import DEFAULTS, load_folder, read_card, read_config
from nfnet_timm.publish.train_data import images_of
from nfnet_timm.publish.train_run import Accuracy, accuracy_of, network_of

__all__ = ["Source", "open_authors", "open_model"]

# First arrays of a network.
_FIRST = ("stem.conv1.weight", "stem.conv.weight")


@dataclass
class Source:
    """A model in eval mode, and the facts about it.

    Args:
        model_args: Arguments of ``create_model`` other than the name.
        metadata: Name, bytes, SHA-256 and MD5 of the file of the weights; {} for a network in memory.
        computed: Whether ``metadata`` was computed from that file. If not, it is a copy from the header of
            model.safetensors.
        checkpoint: The name of the released checkpoint in hub/checkpoints.toml; None for other weights.
        identified_by: How it was identified: by the MD5 of the file, by the header of model.safetensors, which anybody
            may have written, or by the word of the publisher.
        logits: The logits in the header of model.safetensors.
        label_names: Names of the classes, in the order of the outputs.
        label_descriptions: A longer description for each name.
        found_names: Names that were found on this computer. The user decides whether they are right and public.
        card: The text of an existing model card.
        training: The options of timm's train.py, if train.py trained the model.
        ema: Whether the weights are the moving average; None if train.py did not train the model.
        accuracy: The accuracy that train.py measured with these weights at ``epoch``.
        metrics: Values that the owner states, by name.
        dataset: The data of ``metrics``: the id of a dataset on the Hub, or any name.
        left_out: One line for each fact that is not published, with the reason.
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
    metrics: dict[str, float] = field(default_factory=dict)
    dataset: str | None = None
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A config.json of another program may also contain default values.
        self.model_args = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.model_args.items()
            if DEFAULTS.get(key) != value
        }

    def origin(self) -> str:
        """Return a sentence that says whether this is a released checkpoint, and how it was identified."""
        name, md5 = self.metadata.get("source"), self.metadata.get("source_md5")
        if self.identified_by == "MD5":
            return f"{name} is the file that the authors released as {self.checkpoint}: it has the recorded MD5 {md5}"
        if self.identified_by == "header":
            return (
                f"these are the weights of {name}, released as {self.checkpoint}, according to the header written at "
                "conversion. The hash was not recomputed, so the card has no published accuracy. To have it, publish "
                f"{name} itself"
            )
        if self.identified_by == "word":
            return f"{name} is published as the released {self.checkpoint} on your word; no recorded hash confirms it"
        if name is None:
            return "weights of your own, written from a network in memory"
        if not self.computed:
            return (
                f"weights of your own, made from {name} according to the header written at conversion. The hash was "
                "not recomputed"
            )
        if md5 is not None:
            return f"weights of your own: {name} has the MD5 {md5}, which no released file has"
        return f"weights of your own: no hash identifies {name} as a released checkpoint"

    @property
    def architecture(self) -> str:
        """Name of the network in ``nfnet_timm.models.variants``."""
        return self.model.pretrained_cfg["architecture"]

    def may_be(self, released: str) -> bool:
        """Return whether the architecture and arguments are those of the released checkpoint of this name."""
        # The number of classes of the ImageNet-21k checkpoints is not published.
        free = {"num_classes"} if released in load_published()["orbax"] else set()
        return released.split(".")[0] == self.architecture and set(self.model_args) <= free


def open_model(
    path: Path, checkpoint: str | None = None, model: str | None = None, model_kwargs: Mapping[str, Any] | None = None
) -> Source:
    """Return the model at ``path``, a file or a folder of any kind.

    For a checkpoint of train.py, this is the moving average (EMA) if there is one, with the preprocessing of the run.

    Args:
        checkpoint: The name of the released checkpoint in hub/checkpoints.toml, as the user states it.
        model: The network of a state dict, as ``--model`` of train.py. All other sources contain this name.
        model_kwargs: Further arguments of ``create_model`` for a state dict, as ``--model-kwargs`` of train.py.
    Raises:
        ValueError: If it is not one of the types above, or contains another network.
    """
    is_safetensors = path.suffix == ".safetensors" and path.is_file()
    saved = read_arrays(path) if is_safetensors else read_checkpoint(path) if is_torch_file(path) else None
    if saved is not None:
        try:
            if isinstance(saved, dict):
                source = _from_state_dict(path, saved, model, model_kwargs or {})
            else:
                source = _from_training(path, saved)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    elif path.is_dir() and not is_orbax(path):
        source = _from_folder(path)
    elif path.suffix in (".yaml", ".csv"):
        raise ValueError(
            f"{path} has no weights: for a run of train.py, pass a checkpoint in the same folder, such as "
            "model_best.pth.tar"
        )
    else:
        source = open_authors(path)
    if not isinstance(saved, dict) and (model is not None or model_kwargs):
        raise ValueError(
            f"--model {model}: {path} is not a state dict, and contains the name and arguments of its network; leave "
            "out --model and --model-kwargs"
        )
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
    released = _recorded(metadata)
    return Source(model.eval(), arguments, metadata, checkpoint=released, identified_by="MD5" if released else None)


def _from_folder(folder: Path) -> Source:
    weights, pickled, card = (folder / name for name in ("model.safetensors", "pytorch_model.bin", "README.md"))
    if not (folder / "config.json").is_file() or not (weights.is_file() or pickled.is_file()):
        missing = "model.safetensors" if (folder / "config.json").is_file() else "config.json"
        raise ValueError(
            f"{folder} has no {missing}: expected a folder written by `nfnet-timm convert` or timm's save_for_hf. "
            "For a run of train.py, pass one of its files, such as model_best.pth.tar"
        )
    config = read_config(folder / "config.json")
    about: dict[str, Any] = {
        "label_names": config.label_names,
        "label_descriptions": config.label_descriptions,
        "card": read_card(card) if card.is_file() else None,
    }
    model, arguments = load_folder(folder), {**config.model_args, "num_classes": config.num_classes}
    if not weights.is_file():
        return Source(model, arguments, identify(pickled), **about)
    header = checked_header(weights)
    stated = _stated(header) if "arrays_sha256" in header else {}
    # The header of a network that push_to_hub wrote from memory has logits and no source.
    from_memory = "arrays_sha256" in header and "logits" in header and "source" not in header
    logits = recorded_logits(header) if stated or from_memory else None
    source = Source(model, arguments, stated, computed=not stated, logits=logits, **about)
    released = _recorded(stated)
    if released is not None and source.may_be(released):
        source.checkpoint, source.identified_by = released, "header"
    elif released is not None or not (stated or from_memory):  # the header is of another network, or states nothing
        source.metadata, source.computed = identify(weights), True
    return source


def _from_state_dict(
    path: Path, state_dict: dict[str, Tensor], name: str | None, model_kwargs: Mapping[str, Any]
) -> Source:
    arrays = _arrays_of_network(state_dict)
    if name is None:
        found, arguments = infer_variant(arrays)
        kwargs = " ".join(shlex.quote(f"{key}={value}".replace(" ", "")) for key, value in arguments.items())
        raise ValueError(
            "a state dict does not contain the name of its network: pass --model; the shapes are those of "
            f"--model {found}{f' --model-kwargs {kwargs}' if kwargs else ''}"
        )
    chans = [arrays[first].shape[1] for first in _FIRST if first in arrays and arrays[first].dim() == 4]
    options = {"model": name, "model_kwargs": model_kwargs, "in_chans": chans[0] if chans else None}
    model, arguments = network_of(options, arrays, "--model-kwargs")
    default = model.pretrained_cfg["architecture"]
    unknown = (
        f"the image size and the preprocessing are those of {default}, because a state dict has none. If the training "
        "used others: write them into config.json of the new folder, remove its README.md, and publish this folder "
        "with --overwrite"
    )
    return Source(model, arguments, identify(path), left_out=[unknown])


def _arrays_of_network(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the arrays without the prefix that Lightning, DDP and torch.compile put before their names.

    Raises:
        ValueError: If there are arrays of two networks, or other arrays.
    """
    prefixes = sorted({name.removesuffix(first) for name in state_dict for first in _FIRST if name.endswith(first)})
    if len(prefixes) > 1:
        raise ValueError(f"it has {len(prefixes)} networks, {', '.join(map(repr, prefixes))}: save one of them alone")
    prefix = prefixes[0] if prefixes else ""
    if others := [name for name in state_dict if not name.startswith(prefix)]:
        raise ValueError(
            f"it has arrays beside the network {prefix!r}, such as {others[0]}: save the state dict of the network "
            "alone, or pass the network to nfnet_timm.push_to_hub"
        )
    return {name.removeprefix(prefix): array for name, array in state_dict.items()}


def _stated(header: Mapping[str, str]) -> dict[str, str]:
    """Return the name, size and hashes of the original file in a header; {} if an entry has another form."""
    forms = {
        "source": r"[^/\\]{1,255}",
        "source_bytes": r"\d{1,18}",
        "source_sha256": r"[0-9a-f]{64}",
        "source_md5": r"[0-9a-f]{32}",
    }
    found = {key: header[key] for key in forms if key in header}
    well_formed = all(re.fullmatch(forms[key], value) and value.isprintable() for key, value in found.items())
    return found if "source" in found and well_formed else {}


def _from_training(path: Path, saved: TrainCheckpoint) -> Source:
    model, arguments = network_of(saved.args, saved.state_dict)
    if "script" not in saved.args:  # train.py validates with a centre crop, also if the network has another crop mode
        model.pretrained_cfg["crop_mode"] = "center"
    trained = images_of(saved.args, saved.args.get("train_split") or "train")
    names, accuracy = find_class_names(saved.args, model.num_classes, trained), accuracy_of(saved, model, trained)
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
    released = {entry["md5"]: name for name, entry in load_published()["checkpoints"].items()}
    return released.get(metadata.get("source_md5", ""))


def _claimed(name: str, source: Source) -> str:
    """Return ``name``, or raise ValueError if it is not a released checkpoint that ``source`` may be."""
    if name not in released_checkpoints():
        raise ValueError(
            f"there is no released checkpoint {name!r}: expected one of {', '.join(released_checkpoints())}"
        )
    if not source.may_be(name):
        differs = "".join(f", {key}={value!r}" for key, value in source.model_args.items())
        raise ValueError(f"this is not {name}: its arrays are those of {source.architecture}{differs}")
    return name

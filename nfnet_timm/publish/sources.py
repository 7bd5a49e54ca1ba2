"""Reads the models that can be published, with the facts for their cards.

A source is a file of the authors, an Orbax checkpoint, a folder that ``convert`` or timm's ``save_for_hf`` wrote, a
checkpoint of timm's train.py, a state dict with the name of its network, or a network in memory.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nfnet_timm.formats.authors import is_of_authors
from nfnet_timm.formats.safetensors_writer import arrays_hash, read_header
from nfnet_timm.formats.train_checkpoint import TrainCheckpoint, is_torch_file, read_checkpoint
from nfnet_timm.models.build import load_model
from nfnet_timm.models.nfnet import NormFreeNet
from nfnet_timm.models.state_dict import check_state_dict, infer_variant
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.checkpoints import load_published, released_checkpoints
from nfnet_timm.publish.class_names import FoundNames, find_class_names
from nfnet_timm.publish.config_json import DEFAULTS, described_model, load_folder, read_config
from nfnet_timm.publish.fingerprints import check_logits, identify, logits_of, recorded_logits
from nfnet_timm.publish.readme import read_card
from nfnet_timm.publish.train_run import Accuracy, accuracy_of, network_of, published_cfg

__all__ = ["Source", "open_authors", "open_model", "open_network"]

# First arrays of a network.
_FIRST = ("stem.conv1.weight", "stem.conv.weight")
# Constants of layers, which logits may not show.
_CONSTANTS = ("alpha", "eps", "gamma", "scale")
# Parameters whose initial value is 0.
_HIDING = ("skipinit_gain", "head.fc.weight")
_CHANGED = (
    "the network was changed after timm.create_model built it (reparameterized, quantized, other layers or another "
    "head), and cannot be loaded from the Hub: publish it as it was before the change"
)


@dataclass
class Source:
    """A model in eval mode, and the facts about it.

    Args:
        model_args: Arguments of ``create_model`` beside the name.
        metadata: Name, bytes, SHA-256 and MD5 of the file that the weights come from; {} for a network in memory.
        computed: Whether ``metadata`` was computed from that file; else the header of a folder's weights states it.
        checkpoint: The entry of hub/checkpoints.toml, for a released checkpoint.
        identified_by: What identifies it: the MD5 of the file, the header of a folder's weights, which anybody may
            have written, or the word of the publisher.
        logits: The logits in the header of a folder's weights.
        label_names: Names of the classes, in the order of the outputs.
        label_descriptions: A longer description for each name.
        found_names: Names that were found on this computer. The user decides whether they are right and public.
        card: The text of the model card, if there is one already.
        training: The options of timm's train.py, if train.py trained the model.
        ema: Whether the weights are the moving average; None if train.py did not train the model.
        accuracy: The accuracy that train.py measured with these weights at ``epoch``, on images that training did not
            see.
        metrics: Values that the owner states, by name.
        dataset: The data that the owner measured them on: a dataset's id on the Hub, or any name.
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
    accuracy: Accuracy | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    dataset: str | None = None
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
        if name is None:
            return "weights of your own, written from a network in memory"
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


def open_model(
    path: Path, checkpoint: str | None = None, model: str | None = None, model_kwargs: Mapping[str, Any] | None = None
) -> Source:
    """Return the model at ``path``, a file or a folder of any kind.

    For a checkpoint of train.py, this is the moving average (EMA) if there is one, with the preprocessing of the run.

    Args:
        checkpoint: The entry in hub/checkpoints.toml that the weights are, on the user's word. If None, only the MD5
            of a file identifies it.
        model: The network of a state dict, as ``--model`` of train.py. All other sources contain this name.
        model_kwargs: Further arguments of ``create_model``, as ``--model-kwargs`` of train.py.
    Raises:
        ValueError: If it is not one of the four types, or contains another network.
    """
    is_safetensors = path.suffix == ".safetensors" and path.is_file()
    saved = _read_safetensors(path) if is_safetensors else read_checkpoint(path) if is_torch_file(path) else None
    if isinstance(saved, dict):
        source = _from_state_dict(path, saved, model, model_kwargs or {})
    elif saved is not None:
        source = _from_training(path, saved)
    elif path.is_dir() and not is_of_authors(path):
        source = _from_folder(path)
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
    checkpoint = _recorded(metadata)
    identified_by: Literal["MD5"] | None = "MD5" if checkpoint else None
    return Source(model.eval(), arguments, metadata, checkpoint=checkpoint, identified_by=identified_by)


def _from_folder(folder: Path) -> Source:
    weights, pickled, card = (folder / name for name in ("model.safetensors", "pytorch_model.bin", "README.md"))
    if not (folder / "config.json").exists() or not (weights.exists() or pickled.exists()):
        missing = "model.safetensors" if (folder / "config.json").exists() else "config.json"
        raise ValueError(
            f"{folder} has no {missing}: expected a folder written by `nfnet-timm convert` or timm's save_for_hf"
        )
    config = read_config(folder / "config.json")
    about: dict[str, Any] = {
        "label_names": config.label_names,
        "label_descriptions": config.label_descriptions,
        "card": read_card(card) if card.exists() else None,
    }
    arguments = {**config.model_args, "num_classes": config.num_classes}
    if not weights.exists():
        return Source(
            _load_pickled(folder, pickled, config.architecture, arguments), arguments, identify(pickled), **about
        )
    header = read_header(weights)
    if header.get("arrays_sha256") not in (None, arrays_hash(weights)):
        raise ValueError(
            f"the arrays of {weights} do not have the hash in its header: the file is damaged or was changed. Convert "
            "or copy it again; if you changed the arrays yourself, save them without the entry arrays_sha256"
        )
    stated = _stated(header) if "arrays_sha256" in header else {}
    # The header of a network that push_to_hub wrote from memory has logits and no source.
    from_memory = "arrays_sha256" in header and "logits" in header and "source" not in header
    source = Source(
        load_folder(folder),
        arguments,
        stated or ({} if from_memory else identify(weights)),
        computed=not stated,
        logits=recorded_logits(header) if stated or from_memory else None,
        **about,
    )
    released = _recorded(stated)
    if released is not None and not _fits(released, source):
        # The header belongs to another network, so the card does not repeat it.
        source.metadata, source.computed = identify(weights), True
    elif released is not None:
        source.checkpoint, source.identified_by = released, "header"
    return source


def _load_pickled(folder: Path, pickled: Path, architecture: str, arguments: dict[str, Any]) -> Any:
    """Return the model of a folder that timm's ``save_for_hf`` wrote without safetensors."""
    described_model(architecture, arguments, str(folder / "config.json"))
    state_dict = read_checkpoint(pickled) if is_torch_file(pickled) else None
    if not isinstance(state_dict, dict):
        raise ValueError(f"{pickled} is not a state dict of torch.save: write model.safetensors instead")
    model: Any = timm.create_model(f"local-dir:{folder}", device="meta", num_classes=arguments["num_classes"])
    try:
        model.load_state_dict(check_state_dict(state_dict, model, architecture, exact=True))
    except ValueError as error:
        raise ValueError(f"{folder}: config.json and {pickled.name} are of different networks: {error}") from None
    return model.eval()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from None


def _from_state_dict(
    path: Path, state_dict: dict[str, Tensor], name: str | None, model_kwargs: Mapping[str, Any]
) -> Source:
    try:
        arrays = _arrays_of_network(state_dict)
        if name is None:
            found, arguments = infer_variant(arrays)
            kwargs = " ".join(f"{key}={value}".replace(" ", "") for key, value in arguments.items())
            raise ValueError(
                "a state dict does not contain the name of its network: pass --model; the shapes are those of "
                f"--model {found}{f' --model-kwargs {kwargs}' if kwargs else ''}"
            )
        chans = [arrays[first].shape[1] for first in _FIRST if first in arrays and arrays[first].dim() == 4]
        options = {"model": name, "model_kwargs": dict(model_kwargs), "in_chans": chans[0] if chans else None}
        model, arguments = network_of(
            TrainCheckpoint(options, arrays, ema=False, epoch=None, metric=None), "--model-kwargs"
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Source(model, arguments, identify(path))


def _arrays_of_network(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the arrays without the prefix that Lightning, DDP and torch.compile put before their names.

    Raises:
        ValueError: If they are of more than one network, or not of that alone.
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


def open_network(model: nn.Module) -> Source:
    """Return a copy of the network in ``model``, on the CPU and in float32; ``model`` stays as it is.

    Args:
        model: A network of this package, or a module that holds one and no other parameters: a LightningModule, an
            EMA, ``torch.compile``, DDP.
    Raises:
        ValueError: If there is none or more than one, or ``timm.create_model`` cannot build it again: it is
            reparameterized, sharded, has another head or was changed otherwise.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, NormFreeNet)}
    if len(found) != 1:
        names = f": {', '.join(map(repr, found))}; pass one of them" if found else ""
        raise ValueError(
            f"{type(model).__name__} contains {len(found)} networks of nfnet_timm, expected one that "
            f"timm.create_model built{names}"
        )
    ((place, network),) = found.items()
    own = {id(p) for p in network.parameters()}
    if others := [name for name, p in model.named_parameters() if id(p) not in own]:
        raise ValueError(
            f"{type(model).__name__} has parameters beside the network {place!r}, such as {others[0]}, which would be "
            f"lost: publish the network alone, or give it a classifier with reset_classifier()"
        )
    architecture = (getattr(network, "pretrained_cfg", None) or {}).get("architecture")
    if architecture not in VARIANTS:
        raise ValueError(
            f"the network's pretrained_cfg names the architecture {architecture!r}: build it with timm.create_model"
        )
    for name, p in network.named_parameters():
        if p.is_meta or hasattr(p, "full_tensor"):
            kind = "is on the meta device" if p.is_meta else "is sharded over processes"
            raise ValueError(f"{name} {kind}: expected all of its values; load or gather the state dict first")
        if not p.is_floating_point():
            raise ValueError(f"{name} is {p.dtype}: expected a floating-point dtype, such as torch.float32")
    if "forward" in vars(network) and not _is_of_accelerate(network):
        raise ValueError(
            "the network has a forward of its own, which the Hub would not have: build what it does into the data, and "
            "remove it with `del model.forward`"
        )
    try:
        plain: Any = copy.deepcopy(network)
    except Exception as error:  # from the class of any attribute
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"the network cannot be copied: {reason}. Remove what was added to it (attributes and hooks that hold "
            "tensors or locks; weight_norm and pruning with their remove functions), or load its state dict into a new "
            "network of timm.create_model and publish that"
        ) from None
    plain = plain.to(device="cpu", dtype=torch.float32).eval()
    plain.in_chans = plain.stem[0].in_channels  # the stem may have been replaced
    vars(plain).pop("forward", None)
    defaults, stride = asdict(VARIANTS[architecture].cfg), network.feature_info[-1]["reduction"]
    options = {
        "model": architecture,
        "model_kwargs": {
            **{key: value for key, value in asdict(network.cfg).items() if value != defaults[key]},
            **({} if stride == 32 else {"output_stride": stride}),
        },
        "in_chans": plain.in_chans,
        "gp": getattr(getattr(network.head, "global_pool", None), "pool_type", None),
    }
    try:
        built, arguments = network_of(
            TrainCheckpoint(options, plain.state_dict(), ema=False, epoch=None, metric=None), "the network"
        )
        _check_same(built, plain)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:  # also from a state dict without arrays
        raise ValueError(f"{_CHANGED}: {error}") from None
    built.pretrained_cfg = network.pretrained_cfg
    built.pretrained_cfg = published_cfg(built, {})
    return Source(built, arguments, metadata={})


def _is_of_accelerate(network: nn.Module) -> bool:
    """Return whether Accelerate has set ``forward``, which is then that of the class under autocast.

    Source: ``prepare_model`` in accelerate/accelerator.py.
    """
    own = type(network).forward
    original = getattr(vars(network).get("_original_forward"), "__func__", None)
    return original is own and inspect.unwrap(vars(network)["forward"]) is own


def _check_same(built: nn.Module, plain: nn.Module) -> None:
    """Raise ValueError unless two networks with the same weights compute the same."""
    others = dict(plain.named_modules())
    for name, module in built.named_modules():
        for constant in _CONSTANTS:
            expected, found = (getattr(each, constant, None) for each in (module, others.get(name)))
            if found not in (None, expected):
                raise ValueError(f"{name}.{constant} is {found}, expected {expected}")
    check_logits(_logits_of_all_layers(built), _logits_of_all_layers(plain))


@torch.no_grad()
def _logits_of_all_layers(model: nn.Module) -> Tensor:
    """Return the logits with other values in place of skip gains and classifiers of 0, which hide other layers."""
    hiding = [p for name, p in model.named_parameters() if name.endswith(_HIDING) and not p.any()]
    try:
        for p in hiding:
            p.fill_(0.5)
        return logits_of(model)
    finally:
        for p in hiding:
            p.zero_()


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


def _from_training(path: Path, saved: TrainCheckpoint) -> Source:
    try:
        model, arguments = network_of(saved)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "script" not in saved.args:  # train.py validates with a centre crop, also if the network has another crop mode
        model.pretrained_cfg["crop_mode"] = "center"
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

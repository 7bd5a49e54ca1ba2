"""Reads a model from a network in memory, and refuses a network that ``timm.create_model`` cannot build again."""

from __future__ import annotations

import copy
import inspect
from dataclasses import asdict
from typing import Any

import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from nfnet_timm.models.nfnet import NormFreeNet
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.fingerprints import check_logits, logits_of
from nfnet_timm.publish.read_folder import LABELS, check_cfg
from nfnet_timm.publish.sources import Source
from nfnet_timm.publish.train_run import network_of, published_cfg

__all__ = ["open_network"]

# Constants of layers, compared one by one because another value may give the same logits.
_CONSTANTS = ("alpha", "eps", "gamma", "scale")
# Parameters whose initial value is 0. While they are 0, the logits do not depend on the layers before them.
_ZEROS = ("skipinit_gain", "head.fc.weight")
_CHANGED = (
    "the network was changed after timm.create_model built it (reparameterized, quantized, other layers or another "
    "head), and cannot be loaded from the Hub: publish it as it was before the change"
)


def open_network(model: nn.Module) -> Source:
    """Return a copy of the network in ``model``, on the CPU and in float32; ``model`` stays as it is.

    Args:
        model: See ``push_to_hub``.
    Raises:
        ValueError: If ``model`` does not contain exactly one network, or if ``timm.create_model`` cannot build the
            network again because it was changed (reparameterized, sharded, another head, ...).
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
            f"{type(model).__name__} has parameters beside the network {place!r}, such as {others[0]}. They cannot be "
            "published: publish the network alone, or give it a classifier with reset_classifier()"
        )
    cfg: Any = getattr(network, "pretrained_cfg", None) or {}
    cfg = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else cfg  # as timm.get_pretrained_cfg returns it
    architecture = cfg.get("architecture")
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
            "the attribute forward of the network replaces the method of its class, and cannot be published: expected "
            "a network without it. Do the same work in the preprocessing, and remove it with `del model.forward`"
        )
    try:
        plain: Any = copy.deepcopy(network)
    except Exception as error:  # from the class of any attribute
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"the network cannot be copied: {reason}. Load its state dict into a new network of timm.create_model and "
            "publish the new one, or remove added attributes and hooks that contain tensors or locks (weight_norm and "
            "pruning have functions that remove them)"
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
        built, arguments = network_of(options, plain.state_dict(), "the network")
        _check_same(built, plain)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:  # also from a state dict without arrays
        raise ValueError(f"{_CHANGED}: {error}") from None
    where = "the network's pretrained_cfg"
    check_cfg({k: v for k, v in cfg.items() if k not in ("file", *LABELS)}, where)  # file may be a Path or bytes
    built.pretrained_cfg = cfg
    built.pretrained_cfg = published_cfg(built, {}, where)
    return Source(built, arguments, metadata={})


def _is_of_accelerate(network: nn.Module) -> bool:
    """Return whether Accelerate has replaced ``forward`` with the method of the class under autocast.

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
    """Return the logits with 0.5 in place of the 0 in skip gains and classifiers."""
    zeros = [p for name, p in model.named_parameters() if name.endswith(_ZEROS) and not p.any()]
    try:
        for p in zeros:
            p.fill_(0.5)
        return logits_of(model)
    finally:
        for p in zeros:
            p.zero_()

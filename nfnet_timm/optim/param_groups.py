"""Choose the parameters that adaptive clipping and weight decay do not change.

Source: arXiv 2102.06171, section 4.1; ``_make_opt`` in deepmind-research/nfnets/experiment_nfnets.py.
"""

import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from threading import Lock
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from nfnet_timm.kernels.clip.settings import CLIP_EPS, CLIP_FACTOR, Clipping, as_number

__all__ = ["agc_param_groups", "classifier_weights", "exempt_classifier", "known_classifier_weights", "set_entries"]

# An optimizer gets parameters without names, and a parameter loses its attributes when it is loaded, copied or sharded.
# So this set has all living networks, and each step reads their present classifiers.
_networks: WeakSet[nn.Module] = WeakSet()
_lock = Lock()  # one thread may build a network while another one runs a step


def exempt_classifier(network: nn.Module) -> None:
    """Exempt the weight of the classifier of ``network`` from clipping, in every optimizer.

    The classifier may be replaced later. ``network`` is referenced weakly.
    """
    with _lock:
        _networks.add(network)


def known_classifier_weights() -> set[int]:
    """Return the ids of the present classifier weights of all living networks of this package."""
    with _lock:
        networks = list(_networks)
    return {id(p) for network in networks for p in classifier_weights(network)}


def classifier_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of ``model.get_classifier()``, without biases, which are clipped.

    If ``get_classifier()`` fails because the user has replaced or removed the head, these are the weights of
    ``model.head``.
    """
    try:
        classifier = model.get_classifier()  # type: ignore[operator]
    except Exception:
        classifier = getattr(model, "head", None)
    # Distilled networks have several classifiers.
    modules: list[Any] = list(classifier) if isinstance(classifier, (tuple, list)) else [classifier]
    return [
        p
        for module in modules
        if isinstance(module, nn.Module)
        for name, p in module.named_parameters()
        if not {"bias", "bias_orig"} & set(name.split("."))  # also if torch has pruned or parametrized the bias
    ]


def agc_param_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    clip_factor: float | None = CLIP_FACTOR,
    clip_eps: float = CLIP_EPS,
    layer_decay: float | None = None,
    no_clip: str | Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the authors' parameter groups for any model; each trainable parameter is in exactly one group.

    - Clipped but not decayed: gains, biases, skip gains, the parameters of normalization layers, and the names in the
      model's ``no_weight_decay()``.
    - Decayed but not clipped: the weight of the classifier, from timm's ``get_classifier()``.
    - Clipped and decayed: all others.

    Pass them to an optimizer that clips: one of the ``agc-`` optimizers, or any with ``attach_agc``. Others ignore the
    entries about clipping.

    Args:
        layer_decay: Factor of the learning rate from layer to layer, for timm's ``param_groups_layer_decay``. Each
            group then has an entry ``lr_scale``, which timm's schedulers apply.
        no_clip: Names of further parameters that are not clipped, or patterns such as "fc.*". An empty tuple confirms
            that all other parameters are clipped, and prevents the warning below.
    Raises:
        ValueError: If ``model`` is not a module, a number is out of its range, or a name or pattern in ``no_clip``
            matches no parameter.
    Warns:
        RuntimeWarning: If no classifier is known, ``no_clip`` is not given, and a linear layer would be clipped.
    Differs from timm: ``--clip-mode agc`` always exempts the last two parameters of the model.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is of type {type(model).__name__}: expected a torch.nn.Module, because the groups depend on its "
            'names and classifier. Pass the model, or pass parameters to timm\'s create_optimizer_v2(..., "agc-sgd")'
        )
    weight_decay = as_number("weight_decay", weight_decay, "a number of at least 0, such as 2e-5")
    if layer_decay is not None:
        layer_decay = as_number("layer_decay", layer_decay, "a number above 0, such as 0.8, or None", above_0=True)
    clipping = Clipping.entries(clip_factor, clip_eps)
    network = _unwrapped(model)
    classifiers = {id(p) for p in classifier_weights(network)} | known_classifier_weights()
    exempt = classifiers
    if no_clip is not None:
        exempt = classifiers | _matching(network, [no_clip] if isinstance(no_clip, str) else no_clip)
    elif not any(id(p) in exempt for p in network.parameters()):
        _warn_of_linear_layers(network)
    not_decayed = _not_decayed(network) - classifiers
    if layer_decay is None:
        groups: list[dict[str, Any]] = [{"params": [p for p in network.parameters() if p.requires_grad]}]
    else:
        from timm.optim import param_groups_layer_decay  # here by the rule in nfnet_timm/__init__.py

        groups = param_groups_layer_decay(network, 0.0, layer_decay=layer_decay)
    out: dict[tuple[Any, ...], dict[str, Any]] = {}
    for i, group in enumerate(groups):
        for p in group["params"]:
            decayed, clipped = id(p) not in not_decayed, id(p) not in exempt
            key = (group.get("lr_scale", i), decayed, clipped)
            settings = {**group, "params": [], "weight_decay": weight_decay if decayed else 0.0, **clipping}
            if not clipped:
                settings["clip_factor"] = None
            out.setdefault(key, settings)["params"].append(p)
    return list(out.values())


def set_entries(optimizer: Any, entries: dict[str, Any]) -> None:
    """Write ``entries`` into all groups of ``optimizer``, also into those that are added later.

    A group keeps another value that it has, unless the value is that of an earlier call.
    """
    for group in optimizer.param_groups:
        for key, value in entries.items():
            if key not in group or (key in optimizer.defaults and group[key] == optimizer.defaults[key]):
                group[key] = value
    optimizer.defaults.update(entries)  # torch's add_param_group reads these


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DDP, ``torch.compile`` or an average of weights. Its names have no prefix."""
    from timm.utils import unwrap_model

    inner: nn.Module = unwrap_model(model)  # it also returns a part of a model with the name ``module``
    return inner if {id(p) for p in inner.parameters()} == {id(p) for p in model.parameters()} else model


def _not_decayed(model: nn.Module) -> set[int]:
    named: set[str] = getattr(model, "no_weight_decay", set)()
    return {
        id(p)
        for module_name, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if "Norm" in type(module).__name__
        or sum(size != 1 for size in p.shape) <= 1
        or f"{module_name}.{name}".lstrip(".") in named
    }


def _matching(model: nn.Module, patterns: Iterable[str]) -> set[int]:
    """Return the ids of the parameters whose names match one of ``patterns``."""
    found: set[int] = set()
    for pattern in patterns:
        is_text = isinstance(pattern, str)  # a user may pass parameters
        matches = {id(p) for name, p in model.named_parameters() if is_text and fnmatchcase(name, pattern)}
        if not matches:
            names = ", ".join([name for name, _ in model.named_parameters()][-3:])
            raise ValueError(
                f"no_clip={pattern!r} matches no parameter of {type(model).__name__}: expected a name or a pattern of "
                f"model.named_parameters(), for instance its last ones: {names}"
            )
        found |= matches
    return found


def _warn_of_linear_layers(model: nn.Module) -> None:
    """Warn if a linear layer, perhaps the classifier, is not inside a module that has ``get_classifier()``."""
    timm_models = [module for module in model.modules() if hasattr(module, "get_classifier")]
    inside = {id(module) for network in timm_models for module in network.modules()}
    linear = [
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in inside
    ]
    if linear:
        warnings.warn(
            f"no classifier is known in {type(model).__name__}, so every parameter is clipped, also {linear[-1]}. The "
            f"authors do not clip the classifier's weight: pass no_clip={linear[-1]!r}, or no_clip=() to clip all",
            RuntimeWarning,
            stacklevel=3,
        )

"""The authors' parameter groups.

Source: ``_make_opt`` in deepmind-research/nfnets/experiment_nfnets.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nfnet_timm.optim.classifiers import classifier_weights, known_classifier_weights

__all__ = ["CLIPPING", "agc_param_groups", "split_off_classifiers"]

# What a group says of clipping, each a field of agc.Limit; the authors' values, for batches of 4096.
CLIPPING = {"clip_factor": 0.01, "clip_eps": 1e-3}


def agc_param_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    clip_factor: float = CLIPPING["clip_factor"],
    clip_eps: float = CLIPPING["clip_eps"],
    layer_decay: float | None = None,
    **layer_decay_kwargs: Any,
) -> list[dict[str, Any]]:
    """Return the authors' parameter groups of any model, each trainable parameter in exactly one.

    Clipped but not decayed: gains, biases, skip gains, the parameters of normalization layers, and what the model's
    ``no_weight_decay()`` names. Decayed but not clipped: the weight of the classifier, found by timm's
    ``get_classifier()``. All else is both.

    Args:
        layer_decay: Factor of the learning rate from layer to layer, as timm's ``param_groups_layer_decay`` has it;
            that takes ``layer_decay_kwargs``.
    Differs from timm: which parameters are clipped is told by what they are, not by their position in the model.
    """
    classifier = {id(p) for p in classifier_weights(model)} | known_classifier_weights()
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    not_decayed = {
        id(p)
        for module_name, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if "Norm" in type(module).__name__
        or sum(size != 1 for size in p.shape) <= 1
        or f"{module_name}.{name}".lstrip(".") in exempt
    } - classifier
    from timm.optim import param_groups_layer_decay  # not above, by the rule in nfnet_timm/__init__.py

    if layer_decay is None:
        groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    else:
        groups = param_groups_layer_decay(model, 0.0, layer_decay=layer_decay, **layer_decay_kwargs)
    out: dict[tuple[Any, ...], dict[str, Any]] = {}
    for i, group in enumerate(groups):
        for p in group["params"]:
            decayed, clipped = id(p) not in not_decayed, id(p) not in classifier
            key = (group.get("lr_scale", i), decayed, clipped)
            settings = {**group, "params": [], "weight_decay": weight_decay if decayed else 0.0}
            settings.update(clip_factor=clip_factor if clipped else None, clip_eps=clip_eps)
            out.setdefault(key, settings)["params"].append(p)
    return list(out.values())


def split_off_classifiers(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Return ``group`` as what is clipped, and the weights of classifiers, which are not, in a group of their own.

    For whoever is handed parameters and no model: the classifiers are those of the networks here.
    """
    params = group["params"]
    members = [params] if isinstance(params, Tensor) else list(params)
    known = known_classifier_weights()

    def is_classifier(member: Any) -> bool:  # torch takes pairs of a name and a parameter, too
        return id(member[1] if isinstance(member, tuple) else member) in known

    classifiers = [member for member in members if is_classifier(member)]
    rest = [member for member in members if not is_classifier(member)]
    if not classifiers:
        return [group]
    alone = {**group, "params": classifiers, "clip_factor": None}
    return [{**group, "params": rest}, alone] if rest else [alone]

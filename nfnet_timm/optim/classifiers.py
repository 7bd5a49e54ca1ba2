"""Which parameters are the weight of a classifier, which adaptive clipping leaves alone.

An optimizer is handed parameters, and nothing that is put on a parameter outlives loading, copying or sharding. So it
is the networks that are remembered, for as long as they live, and asked for their classifier whenever that matters.

Source: arXiv 2102.06171, section 4.1.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

__all__ = ["classifier_weights", "known_classifier_weights", "remember"]

_networks: WeakSet[nn.Module] = WeakSet()


def remember(network: nn.Module) -> None:
    """Leave the classifier of ``network`` alone in every optimizer that clips; the network is not kept alive."""
    _networks.add(network)


def classifier_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of what timm's ``get_classifier()`` gives for ``model``; biases are clipped."""
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if get_classifier else None
    # Distilled networks have several.
    modules: list[Any] = list(classifier) if isinstance(classifier, (tuple, list)) else [classifier]
    return [
        p
        for module in modules
        if isinstance(module, nn.Module)
        for name, p in module.named_parameters()
        if name.split(".")[-1] != "bias"
    ]


def known_classifier_weights() -> set[int]:
    """Return the ids of the classifiers' weights of all networks that are remembered, as they are now."""
    return {id(p) for network in list(_networks) for p in classifier_weights(network)}

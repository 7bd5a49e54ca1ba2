"""Importing this registers ``agc-sgd``, ``agc-adamw`` and so on: each optimizer of timm, with clipping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.optim import OptimInfo, list_optimizers

from nfnet_timm.compat.timm import optimizer_registry
from nfnet_timm.optim.agc_optimizer import agc_class

__all__: list[str] = []


def _register() -> None:
    registry = optimizer_registry()
    for name in map(str, list_optimizers()):
        info: OptimInfo = registry.get_optimizer_info(name)
        plain: Any = info.opt_class
        # Not for optimizers that timm imports by name, because they need a GPU. Not for those that differentiate the
        # gradients.
        if isinstance(plain, str) or info.second_order or name.startswith("agc-"):
            continue
        registry.register(
            replace(
                info,
                name=f"agc-{name}",
                opt_class=agc_class(plain),
                description=f"{info.description.rstrip('.')}, with adaptive gradient clipping (nfnet_timm)",
            )
        )


_register()

"""What the package uses of timm's private functions; tests/layers/test_timm_private.py names the one that is gone.

timm is imported when a function is called, by the rule in nfnet_timm/__init__.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["clip_grad_module", "optimizer_registry", "save_config", "saved_config", "take_feature_indices"]


def take_feature_indices(count: int, indices: int | list[int] | None) -> tuple[list[int], int]:
    """Return which of ``count`` feature maps are meant, and the largest index of them."""
    from timm.models._features import feature_take_indices

    return feature_take_indices(count, indices)


def save_config(model: nn.Module, path: Path, model_config: dict[str, Any], model_args: dict[str, Any]) -> None:
    """Write a config.json in timm's schema."""
    from timm.models._hub import save_config_for_hf

    save_config_for_hf(model, path, model_config=model_config, model_args=model_args)  # type: ignore[arg-type]


def optimizer_registry() -> Any:
    """Return timm's registry of optimizers."""
    from timm.optim._optim_factory import default_registry

    return default_registry


def clip_grad_module() -> Any:
    """Return the module in which timm's dispatch_clip_grad looks for its adaptive clipping."""
    import timm.utils.clip_grad

    return timm.utils.clip_grad


def saved_config(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the architecture, arguments and pretrained configuration that a config.json gives to ``name``.

    Args:
        name: As ``timm.create_model`` takes it: ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER``; of any other name, it is
            the architecture itself, without its tag.
    """
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    source, _, place = name.partition(":")
    if not place:
        return name.split(".")[0], {}, {}
    load = load_model_config_from_path if source == "local-dir" else load_model_config_from_hf
    pretrained_cfg, architecture, arguments = load(place)
    return architecture, dict(arguments or {}), dict(pretrained_cfg or {})

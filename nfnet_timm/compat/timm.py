"""The private functions of timm that the package uses.

timm is imported when a function is called, because of the second rule in nfnet_timm/__init__.py.
"""

from collections.abc import Iterable
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from torch import nn

__all__ = [
    "config_file",
    "keep_cfgs_of_entrypoints",
    "optimizer_registry",
    "save_config",
    "split_folder",
    "take_feature_indices",
]


def take_feature_indices(count: int, indices: int | list[int] | None) -> tuple[list[int], int]:
    """Return the chosen indices out of ``count``, and the largest one. ``indices`` may be n for the last n, or None."""
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


def keep_cfgs_of_entrypoints(names: Iterable[str]) -> None:
    """Make timm's own functions ``names`` use timm's pretrained_cfg, although this package registers the same names.

    Otherwise ``timm.models.nfnet.nfnet_f0(pretrained=True)`` would load this package's weights into timm's network.
    """
    import timm.models as models
    from timm.models import nfnet

    for name in names:
        entrypoint = getattr(nfnet, name)
        with_own_cfg = update_wrapper(partial(entrypoint, pretrained_cfg=nfnet.default_cfgs[name].default), entrypoint)
        setattr(nfnet, name, with_own_cfg)
        setattr(models, name, with_own_cfg)


def config_file(name: str) -> Path | None:
    """Return the config.json of ``hf-hub:ORG/NAME`` (downloaded if not cached) or ``local-dir:FOLDER``, else None."""
    from timm.models import parse_model_name
    from timm.models._hub import download_from_hf

    source, place = parse_model_name(name)
    if source == "hf-hub":
        return Path(download_from_hf(place, "config.json"))
    return Path(place) / "config.json" if source == "local-dir" else None


def split_folder(root: str, split: str) -> str:
    """Return the folder from which timm's ``create_dataset`` reads ``split``; ``root`` if it has no such folder."""
    from timm.data.dataset_factory import _search_split

    return _search_split(root, split)

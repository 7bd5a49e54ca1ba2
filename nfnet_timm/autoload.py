"""Registers this package with timm, so that users need not import it.

``import torch`` calls ``install`` (entry-point group ``torch.backends``) before torch is completely imported. So this
module must not import torch or timm. ``install`` registers a hook. After the import of timm, the hook loads the entry
points of the groups ``timm.models`` and ``timm.optim``, also those of other packages.

``NFNET_TIMM_AUTOLOAD=0`` switches this off; ``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` switches off all plugins of torch.
``import nfnet_timm`` still registers everything.
"""

import os
import sys
import warnings
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import wrapt

from nfnet_timm.installation import to_upgrade

__all__ = ["install", "torch_is_being_imported", "watch_timm"]

# Modules of timm, and the module of this package that extends each. The name of timm's module is also the name of the
# entry-point group. Our modules are listed because a package that is on the path but not installed has no entry points.
OURS = {"timm.models": "nfnet_timm.models.nfnet", "timm.optim": "nfnet_timm.optim.agc_optimizer"}

OLDEST_TIMM = "1.0.29"  # older ones read another file of a `local-dir:` than model.safetensors

_loaded: set[str] = set()


def install() -> None:
    """Register the hook that loads timm's plugins. Never raises an error, because ``import torch`` would then fail."""
    if os.environ.get("NFNET_TIMM_AUTOLOAD") == "0":
        # Undo this import, so that `import nfnet_timm` runs nfnet_timm/__init__.py, which registers.
        for name in ("nfnet_timm", "nfnet_timm.autoload"):
            sys.modules.pop(name, None)
        return
    watch_timm()


def torch_is_being_imported() -> bool:
    """Return whether ``import torch`` is running. If so, torch and not the user imports this package."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return getattr(spec, "_initializing", False)


def watch_timm() -> None:
    """Load the plugins of ``timm.models`` and ``timm.optim`` after their import, or now if they have been imported."""
    for group in OURS:
        try:
            wrapt.register_post_import_hook(partial(_load, group), group)
        except Exception as error:
            _warn(f"nfnet_timm could not watch for {group}: {error!r}. Import nfnet_timm after timm instead")


def _load(group: str, module: ModuleType) -> None:
    if group in _loaded:
        return
    _loaded.add(group)
    ours = EntryPoint("nfnet_timm", OURS[group], group)
    for plugin in {plugin.value: plugin for plugin in (ours, *entry_points(group=group))}.values():
        timm_version = getattr(sys.modules["timm"], "__version__", "0")
        try:
            if plugin.value == ours.value and _is_too_old(timm_version):
                if len(_loaded) == 1:  # one warning for both groups
                    _warn(
                        f"nfnet_timm does nothing because timm is {timm_version}: expected {OLDEST_TIMM} or newer. Try "
                        "`pip install --upgrade timm`"
                    )
                continue
            plugin.load()
        except Exception as error:
            package = plugin.dist.name if plugin.dist else plugin.value
            _warn(
                f"the timm plugin {plugin.name!r} ({plugin.value}, from {package}) failed to load, and timm works "
                f"without it: {error!r}. Try `pip install --upgrade timm`, then {to_upgrade(package)}, or uninstall "
                f"{package}"
            )


def _is_too_old(timm_version: str) -> bool:
    from packaging.version import Version  # here, so that `import torch` does not wait for it

    return Version(timm_version) < Version(OLDEST_TIMM)


def _warn(message: str) -> None:
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # with `python -W error`; an error would break the import of torch or timm
        print(f"RuntimeWarning: {message}", file=sys.stderr)

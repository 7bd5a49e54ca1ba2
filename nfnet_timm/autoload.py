"""How timm finds this package, and any other that declares the same entry points, without an import.

``import torch`` calls ``install`` (entry-point group ``torch.backends``, torch >= 2.5) while it is itself being
imported. So nothing here imports torch or timm: ``install`` only asks to be called again when timm has been imported,
and then loads the groups ``timm.models`` and ``timm.optim``.

Off with ``NFNET_TIMM_AUTOLOAD=0``, or ``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` for every plugin of torch; an explicit
``import nfnet_timm`` then still registers everything.
"""

import os
import sys
import warnings
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import wrapt

__all__ = ["install", "torch_is_being_imported", "watch_timm"]

# The module that is watched, which is also the group that is loaded after it, and what this package adds to it. Named
# here too, as a package that is on the path without being installed has no entry points.
OURS = {"timm.models": "nfnet_timm.models.nfnet", "timm.optim": "nfnet_timm.optim.twins"}

OLDEST_TIMM = "1.0.21"  # the first release whose layers take device= and dtype=

_watched: set[str] = set()
_loaded: set[str] = set()


def install() -> None:
    """Have timm load its plugins as soon as it is imported; never raises, since torch would then fail to import."""
    if os.environ.get("NFNET_TIMM_AUTOLOAD") == "0":
        # Forget this import, so that an explicit one runs nfnet_timm/__init__.py and registers.
        for name in ("nfnet_timm", "nfnet_timm.autoload"):
            sys.modules.pop(name, None)
        return
    watch_timm()


def torch_is_being_imported() -> bool:
    """Whether ``import torch`` is under way: then it is torch that imports this package, not the user."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return getattr(spec, "_initializing", False)


def watch_timm() -> None:
    """Load the plugins of each watched module of timm after its import, at once if it is imported already."""
    for group in OURS:
        if group in _watched:
            continue
        _watched.add(group)
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
        if plugin.value == ours.value and _is_too_old(timm_version):
            if len(_loaded) == 1:  # one warning for both groups
                _warn(
                    f"nfnet_timm does nothing, as timm is {timm_version}: expected {OLDEST_TIMM} or newer. Try "
                    "`pip install --upgrade timm`"
                )
            continue
        try:
            plugin.load()
        except Exception as error:
            package = plugin.dist.name if plugin.dist else plugin.value
            _warn(
                f"the timm plugin {plugin.name!r} ({plugin.value}, of {package}) failed to load and timm goes on "
                f"without it: {error!r}. Try `pip install --upgrade timm {package}`, or uninstall {package}"
            )


def _is_too_old(timm_version: str) -> bool:
    from packaging.version import Version  # not above: `import torch` alone does not need it

    return Version(timm_version) < Version(OLDEST_TIMM)


def _warn(message: str) -> None:
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # warnings are errors here, and an error would break the import of torch or timm
        print(f"RuntimeWarning: {message}", file=sys.stderr)

"""Reading an Orbax checkpoint of jax_privacy's: a directory with the same parameter tree as the authors' files.

Source: ``restore_from_path`` in experiments/image_classification/models/common.py of google-deepmind/jax_privacy, up to
commit e3741d2: a dict of ``params`` and ``state``, the first with Haiku's names. Never held against the released
directories, which are not at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nfnet_timm.formats.haiku_reader import Tree
from nfnet_timm.installation import to_install

__all__ = ["is_orbax", "read_orbax"]

# Of these, each version of Orbax has written some.
_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint")


def is_orbax(path: Path) -> bool:
    """Tell whether ``path`` is the directory of an Orbax checkpoint, by the files that Orbax puts into one."""
    return path.is_dir() and any((path / name).exists() for name in _MARKS)


def read_orbax(path: Path) -> Tree:
    """Return the parameter tree under ``params`` in an Orbax checkpoint, of float32 arrays; needs ``orbax-checkpoint``.

    Raises:
        ValueError: If Orbax cannot read the directory, or it holds no such tree; the message says what was found.
        ModuleNotFoundError: If ``orbax-checkpoint`` is not installed; the message says what to install.
    """
    try:
        import jax
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is an Orbax checkpoint, and {error.name} is not installed: {to_install('orbax')}"
        ) from None
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            saved = checkpointer.metadata(path.absolute()).item_metadata.tree
            # As NumPy's, whatever devices they were saved from.
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            tree: Any = checkpointer.restore(path.absolute(), restore_args=as_numpy)
    except Exception as error:  # whatever Orbax, TensorStore and their formats raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as an Orbax checkpoint: {reason}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("params"), dict):
        keys = ", ".join(sorted(map(str, tree))[:5]) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{path} holds {keys or 'nothing'}: expected 'params' and 'state', as jax_privacy saves them")
    out: Tree = {}
    for module, params in tree["params"].items():
        if not isinstance(params, dict):
            raise ValueError(f"{path}: {module!r} holds a {type(params).__name__}: expected a dict of parameters")
        for name, array in params.items():
            if getattr(array, "dtype", None) != np.float32:
                kind = getattr(array, "dtype", type(array).__name__)
                raise ValueError(f"{path}: {module}/{name} is {kind}: expected float32")
        out[module] = {name: np.asarray(array) for name, array in params.items()}
    return out

"""Reads an Orbax checkpoint of jax_privacy: a directory with the same parameter tree as the authors' files.

The tree is the entry ``params`` of the checkpoint. This module was not tested with the released directories, because
they were not available.

Source: ``restore_from_path`` in experiments/image_classification/models/common.py of google-deepmind/jax_privacy, up to
commit e3741d2.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nfnet_timm.formats.haiku_reader import Tree
from nfnet_timm.installation import to_install

__all__ = ["is_orbax", "read_orbax"]

# Each version of Orbax writes at least one of these files.
_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint")
_MOST_BYTES = 2**33  # limit for all arrays together; F7+, the largest network, has 3.1 GiB


def is_orbax(path: Path) -> bool:
    """Return whether ``path`` is a directory with at least one of the files that mark an Orbax checkpoint."""
    return path.is_dir() and any((path / name).exists() for name in _MARKS)


def read_orbax(path: Path) -> Tree:
    """Return the parameter tree of float32 arrays under ``params`` in an Orbax checkpoint.

    Needs ``orbax-checkpoint``.

    Raises:
        ValueError: If Orbax cannot read the directory, or it does not contain such a tree.
        ModuleNotFoundError: If ``orbax-checkpoint`` is not installed.
    """
    try:
        import jax
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is an Orbax checkpoint, and {error.name} is not installed: {to_install('orbax')}"
        ) from None
    for other in path.rglob("*"):
        if not (other.is_file() or other.is_dir()):  # Orbax would wait forever for a pipe
            raise ValueError(f"{path} is not read: {other} is neither a file nor a directory, remove it")
    with _late_callbacks_ignored(), ocp.PyTreeCheckpointer() as checkpointer:
        with _errors_of_orbax(path):
            saved = checkpointer.metadata(path.absolute()).item_metadata
        if saved is None:
            raise ValueError(
                f"{path} cannot be read as an Orbax checkpoint: the file _METADATA, or the metadata of an array, is "
                "missing or damaged. Copy it again. For a step of a CheckpointManager, pass the folder with _METADATA"
            )
        _check(saved.tree, jax.tree.leaves(saved.tree), path)
        with _errors_of_orbax(path):
            # As NumPy arrays: the devices that saved them may not exist on this machine.
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree)
            tree: Any = checkpointer.restore(path.absolute(), restore_args=as_numpy)
    return {
        module: {name: np.asarray(array) for name, array in params.items()} for module, params in tree["params"].items()
    }


@contextmanager
def _late_callbacks_ignored() -> Iterator[None]:
    """Print no tracebacks of TensorStore's threads after an error.

    Orbax closes its event loop when it cannot read an array. Other reads that end later raise errors in threads, where
    nobody can catch them.
    """
    report = sys.unraisablehook

    def ignore(raised: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(raised.exc_value):
            report(raised)

    sys.unraisablehook = ignore
    yield
    sys.unraisablehook = report  # after an error the hook stays: late reads may still raise


@contextmanager
def _errors_of_orbax(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever Orbax, TensorStore and their formats raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path} cannot be read as an Orbax checkpoint: {reason}") from None


def _check(tree: Any, leaves: list[Any], path: Path) -> None:
    """Raise ValueError unless the metadata describe a tree of float32 arrays of at most ``_MOST_BYTES``."""
    if not isinstance(tree, dict) or not isinstance(tree.get("params"), dict):
        keys = ", ".join(sorted(map(str, tree))[:5]) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(
            f"{path} contains {keys or 'nothing'}: expected 'params' and 'state', as jax_privacy saves them"
        )
    for module, params in tree["params"].items():
        if not isinstance(module, str) or not isinstance(params, dict):
            raise ValueError(f"{path}: {module!r} is not a dict of parameters")
        for name, array in params.items():
            dtype = getattr(array, "dtype", None)
            if not isinstance(name, str) or dtype != np.float32:
                raise ValueError(f"{path}: {module}/{name} is {dtype or 'not an array'}: expected float32")
    needed = sum(_bytes(leaf) for leaf in leaves)
    if needed > _MOST_BYTES:
        raise ValueError(f"{path} is not read: its arrays need {needed:,} bytes, expected at most {_MOST_BYTES:,}")


def _bytes(leaf: Any) -> int:
    """Return the memory in bytes that reading an array needs: the size of the array or of a chunk, if larger."""
    chunk = getattr(getattr(leaf, "storage", None), "chunk_shape", None)
    sizes = (math.prod(getattr(leaf, "shape", None) or ()), math.prod(chunk or ()))
    return max(sizes) * np.dtype(getattr(leaf, "dtype", None)).itemsize

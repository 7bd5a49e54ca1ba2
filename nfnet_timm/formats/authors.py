"""Weights in a format of the authors, whichever it is.

A new format is a module with a function that tells it and one that reads it as a tree, and a line in ``_FORMATS``.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from nfnet_timm.formats.haiku_names import from_haiku
from nfnet_timm.formats.haiku_reader import read_tree
from nfnet_timm.formats.orbax_reader import is_orbax, read_orbax

__all__ = ["is_of_authors", "load_state_dict"]

_FORMATS = ((is_orbax, read_orbax), (Path.is_file, read_tree))


def is_of_authors(path: Path) -> bool:
    """Tell whether ``path`` is of a kind that the authors released: an Orbax directory, or any single file."""
    return any(is_it(path) for is_it, _ in _FORMATS)


def load_state_dict(path: str | Path | BinaryIO) -> dict[str, Tensor]:
    """Return the state dict in one of the authors' files, or in the directory of an Orbax checkpoint.

    Args:
        path: Or one of the authors' files that is open for reading bytes.
    Raises:
        ValueError: If it cannot be read (see ``read_tree``, ``read_orbax``), holds no network (see ``from_haiku``) or
            an array without values.
        OSError: If there is nothing, or it cannot be opened.
        ModuleNotFoundError: If it takes ``orbax-checkpoint``, and that is not installed.
    """
    if isinstance(path, (str, Path)):
        path = Path(path)
        tree = next((read for is_it, read in _FORMATS if is_it(path)), read_tree)(path)
    else:
        tree = read_tree(path)
    try:
        for module, params in tree.items():
            for name, array in params.items():
                if not array.size:
                    raise ValueError(f"{module}/{name} has shape {array.shape}: expected sizes of at least 1")
        return from_haiku(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

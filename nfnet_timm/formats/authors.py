"""Reads weights in any format of the authors.

To add a format, write a module with two functions: one recognises the format, one reads it as a tree. Then add both to
``_FORMATS``.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from nfnet_timm.formats.haiku_names import from_haiku
from nfnet_timm.formats.haiku_reader import read_tree
from nfnet_timm.formats.orbax_reader import is_orbax, read_orbax

__all__ = ["is_of_authors", "load_state_dict"]

# Pairs (recognise, read); the first match is used.
_FORMATS = ((is_orbax, read_orbax), (Path.is_file, read_tree))


def is_of_authors(path: Path) -> bool:
    """Return whether ``path`` may be in a format of the authors: an Orbax directory, or any single file."""
    return any(recognise(path) for recognise, _ in _FORMATS)


def load_state_dict(path: str | Path | BinaryIO) -> dict[str, Tensor]:
    """Return the state dict of one of the authors' files, or of an Orbax checkpoint.

    Args:
        path: A file of the authors, the directory of an Orbax checkpoint, or a file of the authors that is open for
            reading bytes.
    Raises:
        ValueError: If it cannot be read (see ``read_tree``, ``read_orbax``), if it does not contain a network (see
            ``from_haiku``), or if it contains an array without values.
        OSError: If ``path`` does not exist or cannot be opened.
        ModuleNotFoundError: If ``path`` is an Orbax checkpoint and ``orbax-checkpoint`` is not installed.
    """
    if isinstance(path, (str, Path)):
        path = Path(path)
        tree = next((read for recognise, read in _FORMATS if recognise(path)), read_tree)(path)
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

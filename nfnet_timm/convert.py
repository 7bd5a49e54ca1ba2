"""The authors' formats into a folder that timm loads, and back."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import load_file

from nfnet_timm.folder import save_folder
from nfnet_timm.haiku import to_haiku
from nfnet_timm.haiku_reader import Tree
from nfnet_timm.haiku_writer import write_tree
from nfnet_timm.sources import Source, open_authors

__all__ = ["convert_to_file", "convert_to_folder"]


def convert_to_folder(path: Path, folder: Path) -> Source:
    """Write a file of the authors, or an Orbax checkpoint, as a folder that timm loads; return what was written.

    Raises:
        ValueError: If it holds none of the authors' networks, or the folder other files; nothing is written then.
        OSError: If the folder cannot be written; it is as it was.
    """
    source = open_authors(path)
    save_folder(source.model, folder, source.model_args, source.metadata)
    return source


def convert_to_file(folder: Path, file: Path) -> Tree:
    """Write the weights of a folder as a file that the authors' ``load_haiku_file`` reads, and return the tree.

    The file is written beside and moved: it is complete or not there.

    Raises:
        ValueError: If the folder has no model.safetensors, or other arrays than the authors' networks.
        OSError: If it cannot be written; what was there is as it was.
    """
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise ValueError(f"{folder} has no model.safetensors: expected a folder written by `nfnet-timm convert`")
    tree = to_haiku(load_file(weights))
    partial = file.with_name(f".{file.name}.partial")
    try:
        write_tree(tree, partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return tree

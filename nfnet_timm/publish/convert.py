"""Converts the authors' formats to a folder that timm loads, and back."""

from __future__ import annotations

from pathlib import Path

import timm

from nfnet_timm.formats.haiku_names import to_haiku
from nfnet_timm.formats.haiku_reader import Tree
from nfnet_timm.formats.haiku_writer import write_tree
from nfnet_timm.formats.safetensors_file import checked_header, read_arrays
from nfnet_timm.models.state_dict import check_state_dict, infer_variant
from nfnet_timm.publish.folder import save_folder
from nfnet_timm.publish.sources import Source, open_authors
from nfnet_timm.publish.staging import written_beside

__all__ = ["convert_to_file", "convert_to_folder"]


def convert_to_folder(path: Path, folder: Path, overwrite: bool = False) -> Source:
    """Convert a file of the authors or an Orbax checkpoint to a folder that timm loads, and return its model.

    After an error, ``folder`` is unchanged.

    Raises:
        ValueError: If ``path`` does not contain one of the authors' networks, or if ``folder`` has other content and
            ``overwrite`` is not set.
        OSError: If ``folder`` cannot be written.
    """
    source = open_authors(path)
    save_folder(source.model, folder, source.model_args, source.metadata, overwrite=overwrite)
    return source


def convert_to_file(folder: Path, file: Path, overwrite: bool = False) -> Tree:
    """Write the weights in a folder to a file that the authors' ``load_haiku_file`` reads, and return the tree.

    Half-precision weights become float32 with the same values. After an error, ``file`` is unchanged.

    Raises:
        ValueError: If ``folder`` has no model.safetensors, if this is damaged or its arrays are not those of one of the
            authors' networks, or if ``file`` exists and ``overwrite`` is not set.
        OSError: If ``file`` cannot be written.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{folder} has no model.safetensors: expected a folder written by `nfnet-timm convert`")
    checked_header(weights)
    state_dict = read_arrays(weights)
    try:
        tree = to_haiku(state_dict)
        name, arguments = infer_variant(state_dict)
        check_state_dict(state_dict, timm.create_model(name, device="meta", **arguments), name)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from None
    with written_beside(file, overwrite) as partial:
        write_tree(tree, partial)
    return tree

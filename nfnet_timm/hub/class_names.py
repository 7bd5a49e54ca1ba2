"""Names of a network's classes: where a run of train.py had them from, and from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.utils.misc import natural_key

__all__ = ["FoundNames", "find_class_names", "read_class_names"]


@dataclass(frozen=True)
class FoundNames:
    """Names of classes in the order of the outputs, and the file or folder of this computer that they are from."""

    names: list[str]
    place: Path


def find_class_names(args: Mapping[str, Any], num_classes: int) -> FoundNames | None:
    """Return the names that a run of train.py had, if its class map or data folder is still there.

    ``args`` come with the checkpoint, which may be somebody else's: what is read decides what would be made public, so
    it is for the user to say whether that is right.

    Source: ``load_class_map`` and ``find_images_and_targets`` in timm/data/readers.
    """
    class_map = Path(args.get("class_map") or "")
    if class_map.is_file() and class_map.suffix == ".txt":
        names = read_class_names(class_map)
        return FoundNames(names, class_map) if len(names) == num_classes else None
    data = args.get("data_dir") or args.get("data")
    if not data or args.get("dataset"):  # only of a folder of folders the names are the classes
        return None
    for split in (args.get("train_split"), args.get("val_split")):
        folder = Path(data) / str(split)
        if split and folder.is_dir():
            names = sorted((p.name for p in folder.iterdir() if p.is_dir()), key=natural_key)
            if len(names) == num_classes:
                return FoundNames(names, folder)
    return None


def read_class_names(path: Path) -> list[str]:
    """Return the names in a text file, one a line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

"""Names of a network's classes: where a run of train.py had them from, and from a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data.readers.reader_image_folder import find_images_and_targets

from nfnet_timm.hub.train_data import image_types, library_of, reader_root

__all__ = ["FoundNames", "check_class_names", "find_class_names", "read_class_names"]


@dataclass(frozen=True)
class FoundNames:
    """Names of classes in the order of the outputs, and the file or folder of this computer that they are from."""

    names: list[str]
    place: Path | str


def find_class_names(args: Mapping[str, Any], num_classes: int) -> FoundNames | str | None:
    """Return the names that a run of train.py had, or why they are not known; None where nothing says anything of them.

    They are those of its class map. Only a run without one had them from the folders of the training images.
    ``args`` come with the checkpoint, which may be somebody else's: what is read decides what would be made public, so
    it is for the user to say whether that is right.

    Source: ``load_class_map`` and ``find_images_and_targets`` in timm/data/readers.
    """
    folder = reader_root(args, args.get("train_split") or "train") if not library_of(args)[0] else None
    try:
        if args.get("class_map"):
            index, place = _read_class_map(args["class_map"], folder, library_of(args)[0])
        elif folder is not None:
            _, index = find_images_and_targets(str(folder), image_types(args), sort=False)
            place = folder
        else:
            return None
        names = sorted(index, key=index.__getitem__)
        if sorted(index.values()) != list(range(num_classes)):
            return f"{place} gives {len(index)} names, not one to each of {num_classes} classes"
        return FoundNames(check_class_names(names, num_classes, place), place)
    except (ValueError, OSError) as error:
        return str(error)


def _read_class_map(class_map: Any, folder: Path | None, library: str) -> tuple[dict[str, int], Path | str]:
    """Return the index of each name in a class map, and where it was found: as train.py does, here or in ``folder``.

    Raises:
        ValueError: If it is not there, or not a text file or a table of names and numbers.
    """
    if library == "torch":
        raise ValueError(f"train.py does not use the class map {class_map!r} with datasets of torchvision")
    if isinstance(class_map, Mapping):
        if not all(isinstance(k, str) and type(v) is int for k, v in class_map.items()):
            raise ValueError("the class map in the run's options does not give a number to each name")
        return dict(class_map), "the run's class map"
    path = Path(class_map)
    if not path.exists() and folder is not None:
        path = folder / class_map
    if not path.is_file():
        raise ValueError(f"the run's class map {class_map!r} is not here")
    if path.suffix.lower() != ".txt":
        raise ValueError(f"the run's class map {str(path)!r} is not a text file, and no other kind is read")
    index = {line.strip(): number for number, line in enumerate(_text(path).split("\n"))}
    index.pop("", None)  # the end of the last line, or an empty one, which has a number for timm
    return index, path


def read_class_names(path: Path) -> list[str]:
    """Return the names in a text file, one a line; empty lines do not count.

    Raises:
        ValueError: If it is not UTF-8.
        OSError: If it cannot be read.
    """
    return [line.strip() for line in _text(path).split("\n") if line.strip()]


def check_class_names(names: list[str], num_classes: int, place: Path | str) -> list[str]:
    """Return ``names`` if there is one for each class, and each can be published as it is.

    Raises:
        ValueError: If not; the message contains ``place``.
    """
    if len(names) != num_classes:
        raise ValueError(f"{place} has {len(names)} class names for {num_classes} classes: expected one for each")
    for name in names:
        # Control characters, surrogates (bytes of a folder's name that are no UTF-8), line and paragraph separators.
        odd = [char for char in name if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char == "\ufeff"]
        if odd or not name.strip():
            raise ValueError(f"{place} has the class name {name!r}: expected text without control characters")
    return names


def _text(path: Path) -> str:
    """Return the content of a text file with or without a byte-order mark, its lines ended by newlines."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None

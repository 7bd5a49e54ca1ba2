"""Finds the names of a network's classes: the folders of a run's images, or the lines of a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data.readers.reader_image_folder import find_images_and_targets

from nfnet_timm.publish.train_data import image_types, library_of, reader_root

__all__ = ["FoundNames", "check_class_names", "find_class_names", "read_class_names"]

# Categories of Unicode: control characters, invisible ones, bytes that are not UTF-8, and ends of lines.
_ODD = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = dict.fromkeys(map(ord, "\u200c\u200d"))  # invisible characters that emoji and Persian words need


@dataclass(frozen=True)
class FoundNames:
    """Names of classes in the order of the outputs, and the folder on this computer that contains them."""

    names: list[str]
    place: Path


def find_class_names(args: Mapping[str, Any], num_classes: int) -> FoundNames | str | None:
    """Return the class names of a run of train.py, or a reason why they are unknown, or None if it had no names.

    The names are those of the folders of training images. Ask the user before you publish them: another person may
    have written ``args``, and they can name any folder.

    Source: ``find_images_and_targets`` in timm/data/readers.
    """
    if args.get("class_map"):
        return f"the run had the class map {args['class_map']!r}"
    folder = None if library_of(args)[0] else reader_root(args, args.get("train_split") or "train")
    if folder is None:
        return None
    try:
        _, index = find_images_and_targets(str(folder), image_types(args), sort=False)
        return FoundNames(check_class_names(sorted(index, key=index.__getitem__), num_classes, folder), folder)
    except (ValueError, OSError) as error:
        return str(error)


def read_class_names(path: Path) -> list[str]:
    """Return the names in a text file, one per line, without empty lines and without a byte order mark.

    Raises:
        ValueError: If it is not UTF-8.
        OSError: If it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OSError(
            f"{path} cannot be read ({error.strerror}): expected a text file with a name on each line"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None
    return [line.strip() for line in text.split("\n") if line.strip()]


def check_class_names(names: list[str], num_classes: int, place: Path | str) -> list[str]:
    """Return ``names`` if there is one for each class and each is visible text in one line.

    Two classes may have the same name, as "crane" in ImageNet.

    Raises:
        ValueError: If not; the message contains ``place``.
    """
    if len(names) != num_classes:
        raise ValueError(f"{place} has {len(names)} class names for {num_classes} classes: expected one for each")
    for name in names:
        visible = name.translate(_JOINERS)
        if not visible.strip() or not _ODD.isdisjoint(map(unicodedata.category, visible)):
            raise ValueError(f"{place} has the class name {name!r}: expected visible text without control characters")
    return names

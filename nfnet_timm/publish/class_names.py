"""Finds the names of a network's classes: in the data of a run of train.py, or in a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfnet_timm.formats.typed import check_types
from nfnet_timm.publish.train_data import Images, library_of

__all__ = ["FoundNames", "check_class_names", "find_class_names", "read_class_names"]


@dataclass(frozen=True)
class FoundNames:
    """Names of classes in the order of the outputs, and the file or folder on this computer that contains them."""

    names: list[str]
    place: Path | str


def find_class_names(args: Mapping[str, Any], num_classes: int, trained: Images | None) -> FoundNames | str | None:
    """Return the class names of a run of train.py, or a reason why they are unknown, or None if it had no names.

    The names are those in the run's class map, or the names of the folders of training images if it had none. Ask the
    user before you publish them: ``args`` come from the checkpoint. Another person may have written it, and it can name
    any file.

    Args:
        trained: The images of the training split, from ``images_of``.
    Source: ``load_class_map`` in timm/data/readers/class_map.py.
    """
    if library_of(args)[0] == "torch":  # torchvision numbers other folders than timm, and train.py uses no class map
        return None
    try:
        if args.get("class_map"):
            index, place = _read_class_map(args["class_map"], trained.root if trained else None)
        elif trained is not None:
            index, place = trained.classes, trained.root
        else:
            return None
        names = sorted(index, key=index.__getitem__)
        if sorted(index.values()) != list(range(num_classes)):
            return f"{place} has {len(index)} names, expected one for each of {num_classes} classes"
        return FoundNames(check_class_names(names, num_classes, place), place)
    except (ValueError, OSError) as error:
        return str(error)


def _read_class_map(class_map: Any, folder: Path | None) -> tuple[dict[str, int], Path | str]:
    """Return the index of each name in a class map, and the place of the class map.

    As train.py does, look for a relative path in the current folder first, then in ``folder``.
    """
    if isinstance(class_map, Mapping):
        check_types({"class map": class_map}, {"class map": dict[str, int]}, "the options of train.py")
        return dict(class_map), "the run's class map"
    path = Path(class_map)
    if not path.exists() and folder is not None:
        path = folder / class_map
    if not path.is_file():
        raise ValueError(f"the run's class map {class_map!r} is not on this computer")
    if path.suffix.lower() != ".txt":
        raise ValueError(f"the run's class map is {str(path)!r}, expected a name that ends in .txt")
    index = {line.strip(): number for number, line in enumerate(_text(path).split("\n"))}
    index.pop("", None)  # an empty line; timm counts it, too
    return index, path


def read_class_names(path: Path) -> list[str]:
    """Return the names in a text file, one per line, without empty lines.

    Raises:
        ValueError: If it is not UTF-8.
        OSError: If it cannot be read.
    """
    return [line.strip() for line in _text(path).split("\n") if line.strip()]


def check_class_names(names: list[str], num_classes: int, place: Path | str) -> list[str]:
    """Return ``names`` if there is one for each class, and all are visible text without control characters.

    Two classes may have the same name, as "crane" in ImageNet.

    Raises:
        ValueError: If not; the message contains ``place``.
    """
    if len(names) != num_classes:
        raise ValueError(f"{place} has {len(names)} class names for {num_classes} classes: expected one for each")
    for name in names:
        # Joiners are invisible. Emoji and Persian words need them between other characters.
        if any(map(_is_odd, name)) or all(char.isspace() or unicodedata.category(char) == "Cf" for char in name):
            raise ValueError(f"{place} has the class name {name!r}: expected visible text without control characters")
    return names


def _is_odd(char: str) -> bool:
    """Return whether this is a control character, a byte that is not UTF-8, a line end, or reverses the text."""
    reverses = unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return reverses or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char == "\ufeff"


def _text(path: Path) -> str:
    """Return the content of a text file, without a byte-order mark, with newlines as line ends."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OSError(
            f"{path} cannot be read ({error.strerror}): expected a text file with a name on each line"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None

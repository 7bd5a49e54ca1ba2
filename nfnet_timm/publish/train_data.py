"""Reads from the options of a run of timm's train.py which images it used for training and validation.

Source: ``create_dataset`` in timm/data/dataset_factory.py and ``create_reader`` in timm/data/readers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from timm.data.readers.reader_image_folder import find_images_and_targets

from nfnet_timm.compat.timm import split_folder

__all__ = [
    "Images",
    "dataset_name",
    "hub_id",
    "images_of",
    "library_of",
    "path_name",
    "why_not_unseen",
]

# Names of splits that timm maps to the training split of a torchvision dataset, and to its other split.
_TRAIN = ("train", "training")
_VALIDATION = ("val", "valid", "validation", "eval", "evaluation", "test")


def library_of(args: Mapping[str, Any]) -> tuple[str, str]:
    """Return the library of a run's dataset, and its name there; two empty strings for a folder of images."""
    library, _, name = (args.get("dataset") or "").partition("/")
    known = name and library.lower() in ("torch", "hfds", "hfids", "tfds", "wds")
    return (library.lower(), name) if known else ("", "")


@dataclass(frozen=True)
class Images:
    """The images that train.py reads for a split from the folder ``root``.

    Args:
        folders: The folders that contain images.
        classes: The number of each class if there is no class map.
    """

    root: Path
    folders: set[str]
    classes: dict[str, int]


def images_of(args: Mapping[str, Any], split: str) -> Images | None:
    """Return the images of ``split``; None if they are not in a folder that exists, but in a library or a tar file."""
    data = args.get("data_dir") or args.get("data")
    if not data or not Path(data).is_dir() or library_of(args)[0]:
        return None
    root = Path(split_folder(data, split))
    if not root.is_dir():
        return None
    types = args["input_key"].split(";") if args.get("input_key") else None
    found, classes = find_images_and_targets(str(root), types, sort=False)
    folders = {os.path.dirname(path) for path, _ in found}
    return Images(root, set(map(os.path.realpath, folders)), classes)


def why_not_unseen(args: Mapping[str, Any], trained: Images | None) -> str | None:
    """Return why validation may have used training images or other class numbers; None if it used neither.

    For a split without its own folder, timm reads the whole data folder. timm numbers the classes of each folder by the
    names in it, so a class that is missing in one of them changes the numbers of others. Datasets of torchvision have
    only two splits, with several names for each. Copies of the same images in both folders are not detected.

    Args:
        trained: The images of the training split, from ``images_of``.
    """
    train, validation = args.get("train_split") or "train", args.get("val_split") or ""
    splits = f"--train-split {train!r} and --val-split {validation!r}"
    library, name = library_of(args)
    if library == "torch":
        if train in _TRAIN and validation in _VALIDATION and "folder" not in name.lower():
            return None
        return f"{splits} are not known to be different images of {library}/{name}"
    if library:
        pairs = [(a, b) for a in _split_names(train) for b in _split_names(validation)]
        if any(a.startswith(b) or b.startswith(a) or "all" in (a, b) for a, b in pairs):
            return f"{splits} may have images in common"
        return None
    validated = images_of(args, validation)
    if trained is None or validated is None:
        return "without two folders of images it is unknown whether training used the validation images"
    if not validated.folders:
        return f"{validated.root} has no images now"
    if shared := trained.folders & validated.folders:
        return f"train.py reads {min(shared)} for training and for validation: {splits}"
    if not args.get("class_map"):
        for name, number in validated.classes.items():
            if trained.classes.get(name) != number:
                return (
                    f"class {name!r} has the number {number} in {validated.root}, and "
                    f"{trained.classes.get(name, 'none')} in {trained.root}, because train.py numbers the folders of "
                    "each split. Give both splits the same classes, or train with --class-map"
                )
    return None


def dataset_name(args: Mapping[str, Any]) -> str | None:
    """Return the name of a run's dataset on the Hub or in its library, or the name of its folder without the path."""
    library, name = library_of(args)
    if library in ("hfds", "hfids"):
        return hub_id(name) or path_name(name)
    if library in ("torch", "tfds"):
        return name.replace("/", " ")  # a name with a slash would be a dataset of the Hub
    return path_name(args.get("data_dir") or args.get("data") or "")


def hub_id(name: str) -> str | None:
    """Return ``name`` if it has the form of an id on the Hub, ORG/NAME, and is not a path on this computer."""
    if "/" not in name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _split_names(split: str) -> list[str]:
    """Return the names of the splits in a ``--train-split`` or ``--val-split``, without the selection of images.

    "train[:90%]+test" gives ["train", "test"], and "data/train-{00..99}.tar" gives ["data/train-"].
    """
    return [re.split(r"[\[{|]", part)[0].strip() for part in split.split("+")]


def path_name(path: str) -> str | None:
    """Return the last part of a Linux or Windows path; None if this part is not a name, such as ".."."""
    name = PureWindowsPath(path).name
    return None if name in ("", ".", "..", "~") else name

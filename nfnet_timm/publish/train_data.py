"""Reads from the options of a run of timm's train.py which images it used for training and validation.

Source: ``create_dataset`` in timm/data/dataset_factory.py and ``create_reader`` in timm/data/readers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from timm.data import get_img_extensions
from timm.data.readers.reader_image_folder import find_images_and_targets

from nfnet_timm.compat.timm import split_folder

__all__ = [
    "class_index",
    "dataset_name",
    "hub_dataset",
    "hub_id",
    "library_of",
    "path_name",
    "reader_root",
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


def reader_root(args: Mapping[str, Any], split: str) -> Path | None:
    """Return the folder from which train.py reads ``split``; None if the data folder does not exist."""
    root = args.get("data_dir") or args.get("data")
    return Path(split_folder(root, split)) if root and Path(root).is_dir() else None


def why_not_unseen(args: Mapping[str, Any]) -> str | None:
    """Return why validation may have used training images or other class numbers; None if it used neither.

    For a split without its own folder, timm reads the whole data folder. timm numbers the classes of each folder by the
    names in it, so a class that is missing in one of them changes the numbers of others. Datasets of torchvision have
    only two splits, with several names for each. Copies of the same images in both folders are not detected.
    """
    train, validation = args.get("train_split") or "train", args.get("val_split") or ""
    splits = f"--train-split {train!r} and --val-split {validation!r}"
    library, name = library_of(args)
    is_folder = not library or (library == "torch" and _is_image_folder(name))
    if library == "torch" and not is_folder:
        if train in _TRAIN and validation in _VALIDATION:
            return None
        return f"{splits} are not known to be different images of {library}/{name}"
    if not is_folder:
        pairs = [(a, b) for a in _split_names(train) for b in _split_names(validation)]
        if any(a.startswith(b) or b.startswith(a) or "all" in (a, b) for a, b in pairs):
            return f"{splits} may have images in common"
        return None
    ours, theirs = reader_root(args, train), reader_root(args, validation)
    if ours is None or theirs is None:
        return "without the data folder it is unknown whether training used the validation images"
    seen, unseen = (_places(root, image_types(args)) for root in (ours, theirs))
    if not unseen:
        return f"{theirs} has no images now"
    if shared := seen & unseen:
        return f"train.py reads {min(shared)} for training and for validation: {splits}"
    has_map = args.get("class_map") and not library  # torchvision does not use it
    if ours.is_dir() and theirs.is_dir() and not has_map:
        trained, validated = (class_index(root, args) for root in (ours, theirs))
        for name, number in validated.items():
            if trained.get(name) != number:
                return (
                    f"class {name!r} has the number {number} in {theirs}, and {trained.get(name, 'none')} in {ours}, "
                    "because train.py numbers the folders of each split. Give both splits the same classes, or train "
                    "with --class-map"
                )
    return None


def class_index(folder: Path, args: Mapping[str, Any]) -> dict[str, int]:
    """Return the number that train.py gives to each class of a folder of images if there is no class map.

    Source: ``find_images_and_targets`` in timm/data/readers/reader_image_folder.py, ``find_classes`` in torchvision.
    """
    index = find_images_and_targets(str(folder), image_types(args), sort=False)[1]
    # timm sorts "2" before "10", torchvision does not.
    return {name: i for i, name in enumerate(sorted(index))} if library_of(args)[0] == "torch" else index


def image_types(args: Mapping[str, Any]) -> set[str]:
    """Return the file name extensions that train.py accepts as images."""
    return set(args["input_key"].split(";")) if args.get("input_key") else set(get_img_extensions())


def dataset_name(args: Mapping[str, Any]) -> str | None:
    """Return the name of a run's dataset on the Hub or in its library, or the name of its folder without the path."""
    library, name = library_of(args)
    if library in ("hfds", "hfids"):
        return name if hub_dataset(args) else path_name(name)
    if library in ("torch", "tfds") and not _is_image_folder(name):
        return name.replace("/", " ")  # a name with a slash would be a dataset of the Hub
    return path_name(args.get("data_dir") or args.get("data") or "")


def hub_dataset(args: Mapping[str, Any]) -> str | None:
    """Return the id of a run's dataset on the Hub; None if it is not on the Hub."""
    library, name = library_of(args)
    return hub_id(name) if library in ("hfds", "hfids") else None


def hub_id(name: str) -> str | None:
    """Return ``name`` if it has the form of an id on the Hub, ORG/NAME, and is not a path on this computer."""
    if "/" not in name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _is_image_folder(name: str) -> bool:
    return name.lower() in ("folder", "image_folder")


def _split_names(split: str) -> list[str]:
    """Return the names of the splits in a ``--train-split`` or ``--val-split``, without the selection of images.

    "train[:90%]+test" gives ["train", "test"], and "data/train-{00..99}.tar" gives ["data/train-"].
    """
    return [re.split(r"[\[{|]", part)[0].strip() for part in split.split("+")]


def _places(root: Path, types: set[str]) -> set[str]:
    """Return the folders below ``root`` that contain images, or ``root`` if it is a tar file."""
    if root.is_file():
        return {os.path.realpath(root)}
    return {
        os.path.realpath(folder)
        for folder, _, files in os.walk(root, followlinks=True)
        if any(os.path.splitext(name)[1].lower() in types for name in files)
    }


def path_name(path: str) -> str | None:
    """Return the last part of a Linux or Windows path; None if this part is not a name, such as ".."."""
    name = PureWindowsPath(path).name
    return None if name in ("", ".", "..", "~") else name

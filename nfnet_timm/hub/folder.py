"""A model as a folder in the Hub's layout: what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from torch import nn

from nfnet_timm.formats.safetensors_writer import arrays_hash, read_layout, write_weights
from nfnet_timm.hub.config_json import LABELS, described_model, read_config, read_json
from nfnet_timm.layers.timm_private import save_config
from nfnet_timm.models.infer import check_state_dict

__all__ = ["DEFAULTS", "FILES", "load_folder", "same_model", "save_folder", "written_beside"]

# Arguments of timm.create_model that say nothing at these values.
DEFAULTS = {"num_classes": 1000, "in_chans": 3, "global_pool": "avg"}
FILES = ("model.safetensors", "config.json", "README.md")
_STAGED = ".nfnet-timm-"  # begins the names of folders that hold what is not complete yet


def save_folder(
    model: nn.Module,
    folder: str | Path,
    model_args: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    model_config: Mapping[str, Any] | None = None,
    card: str | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write ``model`` to ``folder`` as weights, config.json and README.md: all or none, always the same bytes.

    Args:
        model_args: Arguments of ``create_model`` beside the name, needed to build the model again.
        metadata: Strings for the header of model.safetensors, beside ``format: pt``.
        model_config: Further entries of config.json in timm's schema: ``label_names``, ``label_descriptions``.
        card: The text of README.md; there is none without.
        overwrite: Whether files of these names may be replaced, if ``folder`` has others of them.
        finish: Called with a folder that holds what is about to be put in place, which it may change; what it raises
            keeps it from that.
    Raises:
        ValueError: If ``folder`` holds anything else, or other content and ``overwrite`` is not set. A config.json that
            repeats what it says elsewhere, as those of timm and of earlier versions do, is replaced.
        OSError: If the disk is full or not writable.
        In both cases, and after Ctrl-C, ``folder`` is as it was.
    Differs from timm: ``save_for_hf`` writes no metadata, without which some readers refuse the file, and by default a
        pickle beside it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder, new or empty")
    others = sorted(name for name in _names(folder) if name not in FILES)
    if others:
        raise ValueError(f"{folder} holds other files ({', '.join(others[:3])}): expected a folder, new or empty")
    try:
        with _staged(folder) as staged:
            write_weights(model.state_dict(), staged / "model.safetensors", metadata or {})
            _write_config(model, staged / "config.json", model_config or {}, model_args or {})
            if card is not None:
                (staged / "README.md").write_bytes(card.encode())
            if finish is not None:
                finish(staged)
            changed = _changed(folder, staged)
            mended = changed == ["config.json"] and _same_config(folder, staged)
            if changed and _names(folder) and not overwrite and not mended:
                lost = "; copy README.md first if you have edited it" if "README.md" in changed else ""
                raise ValueError(
                    f"{folder} is there, and {', '.join(changed)} would change: pass --overwrite to replace it, or "
                    f"choose another folder with --out{lost}"
                )
            if changed:
                _put_in_place(staged, folder)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error}. Nothing was changed") from None


def _write_config(model: nn.Module, path: Path, model_config: Mapping[str, Any], model_args: Mapping[str, Any]) -> None:
    """Write config.json as timm does, but with ``model_args`` that timm cannot know otherwise, and each label once.

    The number of classes is in ``pretrained_cfg``. transformers, which reads the same file, takes no argument twice.
    A model that timm has loaded has the labels in ``pretrained_cfg``, too; they belong at the top.
    """
    save_config(model, path, dict(model_config), dict(model_args))
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"] = _needed(model_args, model.num_classes)
    if not config["model_args"]:
        del config["model_args"]
    for name in LABELS:
        config["pretrained_cfg"].pop(name, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _needed(model_args: Mapping[str, Any], num_classes: Any) -> dict[str, Any]:
    known = {**DEFAULTS, "num_classes": num_classes}
    return {key: value for key, value in model_args.items() if known.get(key) != value}


def load_folder(folder: str | Path) -> Any:
    """Return the model in ``folder``, pretrained and in eval mode.

    Raises:
        ValueError: If config.json or the arrays are not of one network of this package.
        OSError: If a file cannot be read.
    """
    path = Path(folder) / "config.json"
    config = read_config(path)
    described = described_model(
        config.architecture, {**config.model_args, "num_classes": config.num_classes}, str(path)
    )
    arrays = read_layout(Path(folder) / "model.safetensors")
    try:
        check_state_dict(arrays, described, config.architecture, exact=True)
    except ValueError as error:
        raise ValueError(f"{folder}: config.json and model.safetensors are of different networks: {error}") from None
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@contextmanager
def written_beside(file: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write to, and move what was written there to ``file``: it is complete or as it was.

    Raises:
        ValueError: If ``file`` is there and ``overwrite`` is not set.
    """
    if file.exists() and not overwrite:
        raise ValueError(f"{file} is there: pass --overwrite to replace it, or choose another name with --out")
    partial = file.with_name(f"{_STAGED}{file.name}")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give an empty folder on the disk of ``folder``, which may be a mount point or a link to another one."""
    place = folder if folder.exists() else folder.parent
    place.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=place))
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _names(folder: Path) -> list[str]:
    """Return what is in ``folder``, but for what a run that was killed left half-written."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(_STAGED)) if folder.exists() else []


def _changed(folder: Path, staged: Path) -> list[str]:
    """Return the names of files that ``folder`` would lose, get, or get other content of."""
    theirs, ours = set(_names(folder)), set(_names(staged))
    both = theirs & ours
    return sorted(
        (theirs ^ ours) | {name for name in both if not filecmp.cmp(folder / name, staged / name, shallow=False)}
    )


def same_model(folder: Path, staged: Path) -> bool:
    """Tell whether ``folder`` has the arrays of ``staged``, which ``save_folder`` wrote, and the same config.json.

    The headers may differ: the logits in them are rounded otherwise on another machine.
    """
    if not _same_config(folder, staged):
        return False
    try:
        read_layout(folder / "model.safetensors")
    except (ValueError, OSError):
        return False
    return arrays_hash(folder / "model.safetensors") == arrays_hash(staged / "model.safetensors")


def _same_config(folder: Path, staged: Path) -> bool:
    """Tell whether two config.json differ at most in what they repeat, and in what follows from the card.

    Earlier versions and timm repeat arguments, which transformers would get twice.
    """
    told = []
    for path in (folder / "config.json", staged / "config.json"):
        try:
            read_config(path)  # raises if it has other types
        except (ValueError, OSError):
            return False
        config = read_json(path)
        cfg = config.get("pretrained_cfg", {})
        config["model_args"] = _needed(config.get("model_args", {}), config.get("num_classes"))
        config["pretrained_cfg"] = {k: v for k, v in cfg.items() if k not in (*LABELS, "license", "origin_url", "tag")}
        told.append(config)
    return told[0] == told[1]


def _put_in_place(staged: Path, folder: Path) -> None:
    """Move the files of ``staged`` into ``folder``; whatever goes wrong, leave what was there."""
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    moved: list[str] = []
    try:
        with _staged(folder) as before:
            kept = _names(folder)
            try:
                for name in kept:
                    os.replace(folder / name, before / name)
                for name in _names(staged):
                    os.replace(staged / name, folder / name)
                    moved.append(name)
            except BaseException:
                for name in moved:
                    (folder / name).unlink()
                for name in _names(before):
                    os.replace(before / name, folder / name)
                raise
    except BaseException:
        if is_new:
            folder.rmdir()
        raise

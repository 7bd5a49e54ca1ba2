"""A model as a folder in the Hub's layout: what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import timm
from torch import nn

from nfnet_timm.formats.safetensors_writer import arrays_hash, read_layout, write_weights
from nfnet_timm.hub.config_json import LABELS, described_model, read_config, read_json
from nfnet_timm.hub.lock import OURS, locked, names_in
from nfnet_timm.layers.timm_private import save_config
from nfnet_timm.models.infer import check_state_dict

__all__ = ["DEFAULTS", "FILES", "load_folder", "same_model", "save_folder", "written_beside"]

# Arguments of timm.create_model that say nothing at these values.
DEFAULTS = {"num_classes": 1000, "in_chans": 3, "global_pool": "avg"}
FILES = ("model.safetensors", "config.json", "README.md")
# Folders that a run needs while it writes: for new files, for old ones that are being moved away, for all old ones
# while the new ones are moved in, and for all old ones once the new ones are in place.
_STAGED, _OLD, _REPLACED, _DONE = (f"{OURS}{name}" for name in ("new", "old", "replaced", "done"))


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

    While another run writes ``folder``, this one waits. What a run that was killed has left in it is removed.

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
        In both cases, and after Ctrl-C, ``folder`` is as it was. After SIGKILL the next call restores it.
    Differs from timm: ``save_for_hf`` writes no metadata, without which some readers refuse the file, and by default a
        pickle beside it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder, new or empty")
    others = sorted(name for name in names_in(folder) if name not in FILES)
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
            if changed and names_in(folder) and not overwrite and not mended:
                lost = "; copy README.md first if you have edited it" if "README.md" in changed else ""
                raise ValueError(
                    f"{folder} is there, and {', '.join(changed)} would change: pass --overwrite to replace it, or "
                    f"choose another folder with --out{lost}"
                )
            if changed:
                _put_in_place(folder)
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

    While another run writes ``file``, this one waits. The folder of ``file`` is made if it is new.

    Raises:
        ValueError: If ``file`` exists and ``overwrite`` is not set.
    """
    with locked(file.parent, file.name):
        if file.exists() and not overwrite:
            raise ValueError(f"{file} exists: pass --overwrite to replace it, or choose another name with --out")
        partial = file.with_name(f"{OURS}{file.name}")
        try:
            yield partial
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give an empty folder inside of ``folder``, which is made if it is new and removed if it stays empty.

    Inside, as ``folder`` may be a mount point or a link to another disk. One run at a time: it first repairs what a run
    that was killed has left.
    """
    is_new = not folder.exists()
    try:
        with locked(folder):
            _put_back(folder)
            for left in folder.glob(f"{OURS}*"):
                if left.is_dir():
                    shutil.rmtree(left)
            staged = folder / _STAGED
            staged.mkdir()
            try:
                yield staged
            finally:
                for name in (_STAGED, _OLD, _REPLACED, _DONE):
                    shutil.rmtree(folder / name, ignore_errors=True)
    finally:
        if is_new:
            with suppress(OSError):  # it has files now, or another run waits in it
                folder.rmdir()


def _changed(folder: Path, staged: Path) -> list[str]:
    """Return the names of files that ``folder`` would lose, get, or get other content of."""
    theirs, ours = set(names_in(folder)), set(names_in(staged))
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


def _put_in_place(folder: Path) -> None:
    """Exchange the files of ``folder`` for the staged ones; whatever goes wrong, leave what was there.

    The old files wait in a folder whose name says how far this has come, also to a later run.
    """
    old = folder / _OLD
    old.mkdir()
    try:
        for name in FILES:
            if (folder / name).exists():
                os.replace(folder / name, old / name)
        os.replace(old, folder / _REPLACED)
        for name in names_in(folder / _STAGED):
            os.replace(folder / _STAGED / name, folder / name)
        os.replace(folder / _REPLACED, folder / _DONE)
    except BaseException:
        _put_back(folder)
        raise


def _put_back(folder: Path) -> None:
    """Undo what ``_put_in_place`` has begun and not completed."""
    if (folder / _REPLACED).exists():
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        os.replace(folder / _REPLACED, folder / _OLD)
    for name in names_in(folder / _OLD):
        os.replace(folder / _OLD / name, folder / name)

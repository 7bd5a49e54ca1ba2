"""Writes files and folders all or nothing, one run at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nfnet_timm.publish.locks import OURS, locked, names_in

__all__ = ["put_in_place", "staged_folder", "written_beside"]

# Folders that a run needs while it writes: for new files, for old ones that are being moved away, for all old ones
# while the new ones are moved in, and for all old ones once the new ones are in place.
_STAGED, _OLD, _REPLACED, _DONE = (f"{OURS}{name}" for name in ("new", "old", "replaced", "done"))


@contextmanager
def written_beside(file: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to write to, and move the result to ``file``, which is then complete or as it was.

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
def staged_folder(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Yield an empty folder inside of ``folder``, which is made if it is new and removed if it stays empty.

    It is inside because ``folder`` may be a mount point or a link to another disk. One run at a time: it first repairs
    what a killed run has left.

    Args:
        names: The files of ``folder`` that ``put_in_place`` exchanges.
    """
    is_new = not folder.exists()
    try:
        with locked(folder):
            _put_back(folder, names)
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


def put_in_place(folder: Path, names: tuple[str, ...]) -> None:
    """Replace the files of ``folder`` by the staged ones; after an error the old ones are back.

    The old files wait in a folder whose name tells a later run how far this has come.
    """
    old = folder / _OLD
    old.mkdir()
    try:
        for name in names:
            if (folder / name).exists():
                os.replace(folder / name, old / name)
        os.replace(old, folder / _REPLACED)
        for name in names_in(folder / _STAGED):
            os.replace(folder / _STAGED / name, folder / name)
        os.replace(folder / _REPLACED, folder / _DONE)
    except BaseException:
        _put_back(folder, names)
        raise


def _put_back(folder: Path, names: tuple[str, ...]) -> None:
    """Undo an exchange that was begun and not completed."""
    if (folder / _REPLACED).exists():
        for name in names:
            (folder / name).unlink(missing_ok=True)
        os.replace(folder / _REPLACED, folder / _OLD)
    for name in names_in(folder / _OLD):
        os.replace(folder / _OLD / name, folder / name)

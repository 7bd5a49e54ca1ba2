"""Writes files and folders completely or not at all, one run at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nfnet_timm.publish.locks import OURS, locked, names_in
from nfnet_timm.signals import signals_held, stop_if_interrupted

__all__ = ["put_in_place", "refuse_irregular", "staged_folder", "written_beside"]

# Temporary folders. The last three are names of one folder, for the steps of ``put_in_place``:
# new       the new files
# old       the old files, while they are moved out one by one
# replaced  all old files, while the new files are moved in
# done      all old files, after all new files have been moved in
_STAGED, _OLD, _REPLACED, _DONE = (f"{OURS}{name}" for name in ("new", "old", "replaced", "done"))


@contextmanager
def written_beside(file: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to write to, and move the result to ``file``. After an error, ``file`` is unchanged.

    Waits while another run writes ``file``. Creates the folder of ``file`` if it does not exist.

    Raises:
        ValueError: If ``file`` is a directory or a pipe, or if it exists and ``overwrite`` is not set.
    """
    refuse_irregular(file)
    with locked(file.parent, file.name):
        if os.path.lexists(file) and not overwrite:
            raise ValueError(f"{file} exists: pass --overwrite to replace it, or choose another name with --out")
        partial = file.with_name(f"{OURS}{file.name}")
        try:
            yield partial
            stop_if_interrupted()
            os.replace(partial, file)
        except OSError as error:
            if error.errno is not None and error.filename is None:  # errors of write() contain no name
                error.filename = str(file)
            raise
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Yield an empty temporary folder inside ``folder``.

    Creates ``folder`` if it does not exist, and removes it if it stays empty. The temporary folder is inside because
    ``folder`` may be a mount point or a link to another disk. Waits while another run writes ``folder``. If an earlier
    run was killed, restores the files that it had moved.

    Args:
        names: The files of ``folder`` that ``put_in_place`` replaces.
    Raises:
        ValueError: If one of ``names`` is a directory, which would be lost, or a pipe.
        OSError: If ``folder`` cannot be written. The message says whether it was changed.
    """
    for name in names:
        refuse_irregular(folder / name)
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
                with signals_held():
                    for name in (_STAGED, _DONE):
                        shutil.rmtree(folder / name, ignore_errors=True)
                    with suppress(OSError):  # old files that could not be put back: the next run tries again
                        (folder / _OLD).rmdir()
    except OSError as error:
        moved = next((str(folder / name) for name in (_OLD, _REPLACED) if (folder / name).exists()), None)
        state = f"Its files were moved to {moved}: run again to put them back" if moved else "Nothing was changed"
        raise OSError(f"cannot write {folder}: {error}. {state}") from None
    finally:
        if is_new:
            with suppress(OSError):  # it has files now, or another run waits in it
                folder.rmdir()


def refuse_irregular(file: Path) -> None:
    """Raise ValueError if ``file`` is a directory, or a pipe, whose reader could wait for ever."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is a directory or a pipe: expected a file; move it away")


def put_in_place(folder: Path, names: tuple[str, ...]) -> None:
    """Replace the files of ``folder`` by those in its temporary folder. After an error, restore the old files.

    The old files are kept in a second temporary folder, whose name tells the next run which step a killed run reached.
    """
    stop_if_interrupted()
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
        with signals_held():
            _put_back(folder, names)
        raise


def _put_back(folder: Path, names: tuple[str, ...]) -> None:
    """Restore the old files if ``put_in_place`` has begun and not finished."""
    if (folder / _REPLACED).exists():
        for name in names:
            (folder / name).unlink(missing_ok=True)
        os.replace(folder / _REPLACED, folder / _OLD)
    for name in names_in(folder / _OLD):
        os.replace(folder / _OLD / name, folder / name)

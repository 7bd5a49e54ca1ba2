"""Writes files and folders completely or not at all, one run at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nfnet_timm.publish.locks import OURS, locked
from nfnet_timm.signals import signals_held

__all__ = ["staged_folder", "written_beside"]


@contextmanager
def written_beside(file: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path to write to, and move the result to ``file``. After an error, ``file`` is unchanged.

    Waits while another run writes ``file``. Creates the folder of ``file`` if it does not exist.

    Raises:
        ValueError: If ``file`` is a directory, or if it exists and ``overwrite`` is not set.
        OSError: If ``file`` cannot be written.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a directory: expected a file; move it away")
    with locked(file.parent, file.name):
        if os.path.lexists(file) and not overwrite:
            raise ValueError(f"{file} exists: pass --overwrite to replace it, or choose another name with --out")
        partial = file.with_name(f"{OURS}{file.name}")
        try:
            yield partial
            os.replace(partial, file)
        except OSError as error:  # errors of write() contain no name
            raise OSError(f"cannot write {file}: {error}") from None
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder inside ``folder``, and remove it in the end.

    Creates ``folder`` if it does not exist, and removes it if it stays empty. The temporary folder is inside because
    ``folder`` may be a mount point or a link to another disk. Waits while another run writes ``folder``.

    Raises:
        ValueError: If ``folder`` is a file.
        OSError: If ``folder`` cannot be written.
    """
    is_new, staged = not folder.exists(), folder / f"{OURS}new"
    try:
        with locked(folder):
            shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed
            staged.mkdir()
            try:
                yield staged
            finally:
                with signals_held():
                    shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error}") from None
    finally:
        if is_new:
            with suppress(OSError):  # it has files now, or another run waits in it
                folder.rmdir()

"""Locks for files and folders: a second run waits until the first run has ended."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["OURS", "locked", "names_in"]

OURS = ".nfnet-timm-"  # prefix of the names of locks and of incomplete files and folders


@contextmanager
def locked(folder: Path, name: str = "") -> Iterator[None]:
    """Lock the file ``name`` in ``folder``, or ``folder`` itself if there is no name.

    While another run has the lock, print a message and wait. The lock is a file in ``folder``, which is created if it
    does not exist. The operating system frees the lock when the process ends, even if it is killed. If the file system
    does not support locks, this does not wait.

    Raises:
        ValueError: If ``folder`` is a file, or a symbolic link to nothing.
        OSError: If ``folder`` cannot be written to.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        kind = "a file" if folder.exists() else "a link to something that does not exist"
        raise ValueError(f"{folder} is {kind}: expected a folder, or a new name")
    path, has_shown = folder / f"{OURS}{name}.lock", False
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # a run that failed may have removed it
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(FileNotFoundError):
            # If the previous run has removed the lock file, other runs do not see this lock: try again.
            if _lock(lock) and os.path.samestat(os.fstat(lock), path.stat()):
                break
        os.close(lock)
        if not has_shown:
            print(f"waiting for another run that writes {folder / name}", file=sys.stderr, flush=True)
        has_shown = True
        time.sleep(0.1)
    try:
        yield
    finally:
        _remove_and_unlock(path, lock)


def names_in(folder: Path) -> list[str]:
    """Return the sorted names of the files in ``folder``, without hidden ones: locks, incomplete files, .DS_Store."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.exists() else []


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> bool:
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _remove_and_unlock(path: Path, lock: int) -> None:
        os.close(lock)  # Windows does not remove open files
        with suppress(OSError):
            path.unlink()

else:
    import fcntl

    def _lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # some file systems raise PermissionError
            return False
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # no support for locks
                raise
        return True

    def _remove_and_unlock(path: Path, lock: int) -> None:
        with suppress(OSError):
            path.unlink()
        os.close(lock)

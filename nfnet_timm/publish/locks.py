"""One run at a time in one place: a second run waits until the first has ended, however that ends."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["OURS", "locked", "names_in"]

OURS = ".nfnet-timm-"  # begins the names of locks and of incomplete files and folders


@contextmanager
def locked(folder: Path, name: str = "") -> Iterator[None]:
    """Keep other runs from writing ``name`` in ``folder``, or ``folder`` itself if there is no name.

    Waits while another run does that, and prints so. The lock is a file in ``folder``, which is made if it is new. The
    operating system frees it when the process ends, so a run that was killed stops nobody. Where the file system has
    no locks, nobody waits.

    Raises:
        OSError: If ``folder`` cannot be written to.
    """
    path = folder / f"{OURS}{name}.lock"
    lock = _open_and_lock(path, f"waiting for another run that writes {folder / name}")
    try:
        yield
    finally:
        _remove_and_unlock(path, lock)


def names_in(folder: Path) -> list[str]:
    """Return what is in ``folder``, except for what is incomplete."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(OURS)) if folder.exists() else []


def _open_and_lock(path: Path, message: str) -> int:
    shown = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # a run that failed may have removed it
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not _lock(lock):
                if not shown:
                    print(message, file=sys.stderr, flush=True)
                shown = True
                time.sleep(0.1)
            # Other runs do not see this lock if the run before has removed its file.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> bool:
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _remove_and_unlock(path: Path, lock: int) -> None:
        os.close(lock)  # Windows removes no open file
        with suppress(OSError):
            path.unlink()

else:
    import fcntl

    def _lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # some file systems report the second
            return False
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # no locks there
                raise
        return True

    def _remove_and_unlock(path: Path, lock: int) -> None:
        with suppress(OSError):
            path.unlink()
        os.close(lock)

"""Reads weights in any format of the authors."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from torch import Tensor

from nfnet_timm.formats.haiku_names import from_haiku
from nfnet_timm.formats.haiku_reader import read_tree
from nfnet_timm.formats.orbax_reader import is_orbax, read_orbax

__all__ = ["fetched", "is_url", "load_state_dict"]


def is_url(source: Any) -> bool:
    """Return whether ``source`` is a URL of fsspec, such as "s3://bucket/F0_haiku.npz"."""
    return isinstance(source, str) and "://" in source


@contextmanager
def fetched(source: str | Path | bytes | BinaryIO) -> Iterator[Path]:
    """Yield a path with the content of ``source``: its own path, or the path of a temporary copy.

    If the block raises ValueError, the message names ``source`` instead of the copy.

    Args:
        source: A path, a URL of fsspec, the content of a file, or a file that is open for reading bytes.
    Raises:
        ValueError: If the URL is malformed.
        ImportError: If the URL needs a package that is not installed, such as s3fs.
        OSError: If ``source`` does not exist or cannot be read.
    """
    if isinstance(source, (str, Path)) and not is_url(source):
        yield Path(source)
        return
    # A file that is still mapped cannot be removed on Windows.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if isinstance(source, str):
            name, path = source, _download(source, Path(folder))
        else:
            name, path = str(getattr(source, "name", "the file")), Path(folder) / "F_haiku.npz"
            content: Any = source.read() if hasattr(source, "read") else source
            path.write_bytes(content)
        try:
            yield path
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None


def _download(url: str, folder: Path) -> Path:
    """Copy the file or directory at ``url`` to ``folder`` and return its path. For errors see ``fetched``."""
    from fsspec.core import url_to_fs

    expected = "expected the URL of one of the authors' files, such as s3://bucket/F0_haiku.npz"
    try:
        filesystem, place = url_to_fs(url)
        name = PurePosixPath(place).name
        path = folder / (name if name not in ("", "..") else "root")
        filesystem.get(place.rstrip("/"), str(path), recursive=filesystem.isdir(place))
    except FileNotFoundError:
        raise FileNotFoundError(f"{url} does not exist: {expected}") from None
    except ImportError as error:
        command = ": `pip install 'fsspec[http]'`" if url.startswith("http") else ""
        raise ImportError(f"{url}: {error}{command}") from None
    except Exception as error:  # file systems raise errors of many types, such as TypeError and those of zipfile
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{url} cannot be read: {str(error) or type(error).__name__}; {expected}") from None
    return path


def load_state_dict(source: str | Path | bytes | BinaryIO) -> dict[str, Tensor]:
    """Return the state dict of one of the authors' files, or of an Orbax checkpoint.

    Args:
        source: See ``fetched``.
    Raises:
        ValueError: If it cannot be read (see ``read_tree``, ``read_orbax``), or if it does not contain a network (see
            ``from_haiku``).
        ImportError: If it is an Orbax checkpoint and ``orbax-checkpoint`` is not installed; see also ``fetched``.
        OSError: If it does not exist or cannot be opened.
    """
    with fetched(source) as path:
        tree = read_orbax(path) if is_orbax(path) else read_tree(path)
        try:
            return from_haiku(tree)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

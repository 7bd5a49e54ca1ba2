"""Reads weights in any format of the authors.

To add a format, write a module with two functions: one recognises the format by its content, one reads it as a tree.
Then add both to ``_FORMATS``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from torch import Tensor

from nfnet_timm.formats.haiku_names import from_haiku
from nfnet_timm.formats.haiku_reader import read_tree
from nfnet_timm.formats.orbax_reader import is_orbax, read_orbax

__all__ = ["fetched", "is_recognised", "is_url", "load_state_dict"]

# Pairs (recognise, read); the first match is used. Everything else is read as one of the authors' pickles.
_FORMATS = ((is_orbax, read_orbax),)


def is_recognised(path: Path) -> bool:
    """Return whether the content of ``path`` is in one of the formats other than the authors' pickles."""
    return any(recognise(path) for recognise, _ in _FORMATS)


def is_url(source: Any) -> bool:
    """Return whether ``source`` is a URL of fsspec, such as "s3://bucket/F0_haiku.npz"."""
    return isinstance(source, str) and "://" in source


@contextmanager
def fetched(source: str | Path | bytes | BinaryIO) -> Iterator[Path]:
    """Yield the path of a file or directory with the content of ``source``: its own path, or that of a temporary copy.

    Messages of ValueErrors that pass through name ``source``.

    Args:
        source: A path, a URL of fsspec, the content of a file, or a file that is open for reading bytes.
    Raises:
        ValueError: If a file is open for reading text, or if the URL is malformed.
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
            content: Any = source.read() if hasattr(source, "read") else source
            if isinstance(content, str):
                raise ValueError(f"{source!r} is open for reading text: open it for reading bytes, with mode 'rb'")
            name, path = str(getattr(source, "name", "the file")), Path(folder) / "F_haiku.npz"
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
        path = folder / (PurePosixPath(place).name or "root")
        filesystem.get(place.rstrip("/"), str(path), recursive=filesystem.isdir(place))
    except FileNotFoundError:
        raise FileNotFoundError(f"{url} does not exist: {expected}") from None
    except ImportError as error:
        command = ": `pip install 'fsspec[http]'`" if url.startswith("http") else ""
        raise ImportError(f"{url}: {error}{command}") from None
    except Exception as error:  # the file systems also raise errors of zipfile and tarfile, TypeError, AttributeError
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{url} cannot be read: {str(error) or type(error).__name__}; {expected}") from None
    return path


def load_state_dict(source: str | Path | bytes | BinaryIO) -> dict[str, Tensor]:
    """Return the state dict of one of the authors' files, or of an Orbax checkpoint.

    Args:
        source: See ``fetched``.
    Raises:
        ValueError: If it cannot be read (see ``read_tree``, ``read_orbax``), if it does not contain a network (see
            ``from_haiku``), or if it contains an array without values.
        ImportError: If it is an Orbax checkpoint and ``orbax-checkpoint`` is not installed; see also ``fetched``.
        OSError: If it does not exist or cannot be opened.
    """
    with fetched(source) as path:
        tree = next((read for recognise, read in _FORMATS if recognise(path)), read_tree)(path)
        try:
            for module, params in tree.items():
                for name, array in params.items():
                    if not array.size:
                        raise ValueError(f"{module}/{name} has shape {array.shape}: expected sizes of at least 1")
            return from_haiku(tree)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

"""Writes and reads model.safetensors. The same arrays give the same bytes, and the header contains their hash.

Functions that read raise ValueError if the file is damaged or has another format, and OSError if it cannot be opened.

Source of the format: https://github.com/huggingface/safetensors. The library's ``save_file`` orders the entries of the
header differently in every process, has no progress bar, and cannot be interrupted with Ctrl-C.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nfnet_timm.formats.progress import bytes_bar

__all__ = ["arrays_hash", "checked_header", "read_arrays", "read_header", "read_layout", "write_weights"]

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_CHUNK = 1 << 22  # bytes


def write_weights(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write ``tensors``, sorted by name, as a safetensors file.

    Args:
        metadata: Strings for the header. ``format: pt`` and ``arrays_sha256`` (see ``arrays_hash``) are added.
    Raises:
        ValueError: If a tensor is not float64, float32, bfloat16 or float16. Nothing is written then.
    """
    header: dict[str, Any] = {"__metadata__": {}}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise ValueError(f"{name} is {tensor.dtype}: expected one of {kinds}")
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    sha256 = hashlib.sha256()
    with path.open("wb") as file, bytes_bar(end, f"writing {path.name}") as bar:
        file.write(_encode(header, metadata, sha256.hexdigest()))
        for name in sorted(tensors):
            array: Any = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            content = memoryview(array)
            for begin in range(0, len(content), _CHUNK):
                chunk = content[begin : begin + _CHUNK]
                sha256.update(chunk)
                file.write(chunk)
                bar.update(len(chunk))
        file.seek(0)
        file.write(_encode(header, metadata, sha256.hexdigest()))


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with _opened(path) as file:
        return file.metadata() or {}


def checked_header(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, after a comparison of the arrays with their hash in the metadata.

    Raises:
        ValueError: If there is a hash and the arrays have another one.
    """
    header = read_header(path)
    recorded = header.get("arrays_sha256")
    if recorded is not None and recorded != arrays_hash(path):
        raise ValueError(
            f"the arrays of {path} do not have the hash in its header: the file is damaged or was changed. Write it "
            "again from its source; if you changed the arrays yourself, save them without the entry arrays_sha256"
        )
    return header


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a safetensors file."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_layout(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a safetensors file on the meta device: shapes and types without values.

    Raises:
        ValueError: If an array is not float64, float32, bfloat16 or float16.
    """
    dtypes = {name: dtype for dtype, name in _DTYPES.items()}
    arrays = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118
            array = file.get_slice(name)
            if array.get_dtype() not in dtypes:
                raise ValueError(f"{path}: {name} is {array.get_dtype()}, expected one of {', '.join(dtypes)}")
            arrays[name] = torch.empty(array.get_shape(), dtype=dtypes[array.get_dtype()], device="meta")
    return arrays


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or is not a safetensors file: {error}") from None


def arrays_hash(path: Path) -> str:
    """Return the SHA-256 of the arrays of a safetensors file, which is everything after its header."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + size)
        with bytes_bar(path.stat().st_size - 8 - size, f"hashing {path.name}") as bar:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                bar.update(len(chunk))
    return sha256.hexdigest()


def _encode(header: dict[str, Any], metadata: Mapping[str, str], digest: str) -> bytes:
    header["__metadata__"] = dict(sorted({**metadata, "format": "pt", "arrays_sha256": digest}.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the arrays to 8 bytes
    return struct.pack("<Q", len(text)) + text

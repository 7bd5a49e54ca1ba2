"""Writes a parameter tree as a file that the authors' code reads.

NumPy 2 renamed the module that a pickled array names, so NumPy 1.18 to 1.25 cannot read a pickle of NumPy 2. This
module writes the pickle instructions itself, with the old name, which all versions accept.
"""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nfnet_timm.formats.haiku_reader import Tree

__all__ = ["write_tree"]

# Pickle instructions of protocol 3 with their names in pickletools, for the beginning of an array and for its dtype.
_EMPTY_ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\n"  # GLOBAL
    b"cnumpy\nndarray\n"
    b"K\x00\x85"  # BININT1 0, TUPLE1
    b"C\x01b"  # SHORT_BINBYTES
    b"\x87R"  # TUPLE3, REDUCE
)
_FLOAT32 = (
    b"cnumpy\ndtype\n"
    b"X\x02\x00\x00\x00f4\x89\x88\x87R"  # dtype("f4", False, True)
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"  # its state, BUILD
)


def write_tree(tree: Tree, path: str | Path) -> None:
    """Write ``tree`` as a pickle of dicts of float32 NumPy arrays, which the authors' ``load_haiku_file`` reads.

    dill and pickle read it exact to the bit, from Python 3.7 with NumPy 1.18 to the newest versions.

    Raises:
        ValueError: If an array is not float32. The file is then incomplete.
    Source: ``load_haiku_file`` in deepmind-research/nfnets/utils.py.
    Differs from the released files: they have Haiku's FlatMappings, which need Haiku; this writes dicts.
    """
    with Path(path).open("wb") as file:
        file.write(b"\x80\x03")  # PROTO 3, the newest protocol of Python 3.7, which the authors used
        _write_dict(file, tree, lambda params: _write_dict(file, params, lambda array: _write_array(file, array)))
        file.write(b".")  # STOP


def _write_dict(file: BinaryIO, items: Mapping[str, Any], write_value: Callable[[Any], None]) -> None:
    file.write(b"}(")  # EMPTY_DICT, MARK
    for key, value in items.items():
        text = key.encode()
        file.write(b"X" + struct.pack("<I", len(text)) + text)  # BINUNICODE
        write_value(value)
    file.write(b"u")  # SETITEMS


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    if array.dtype.newbyteorder("=") != np.float32:
        raise ValueError(f"an array of shape {array.shape} is {array.dtype}: expected float32, as the authors' are")
    content = np.ascontiguousarray(array, dtype="<f4").data
    file.write(_EMPTY_ARRAY + b"(K\x01(")  # the array's state: 1, its shape ...
    for size in array.shape:
        file.write(b"J" + struct.pack("<i", size))  # BININT
    file.write(b"t" + _FLOAT32 + b"\x89B" + struct.pack("<I", content.nbytes))  # ... its dtype, False, its bytes
    file.write(content)
    file.write(b"tb")  # TUPLE, BUILD

"""Reading the authors' checkpoint files, which are pickles, without running anything that is in them.

``F*_haiku.npz`` were written by ``dill`` and are meant to be read by it, which executes whatever the file says. Here
the pickle is not unpickled but interpreted: ``pickletools`` splits it into opcodes, and the few that describe a tree of
arrays build plain Python values. A name in the file stays a name: nothing is imported, and the only "calls" are the
ones spelled out in ``_reduce``. All else is refused, with nothing of it done.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Tree", "read_tree", "write_tree"]

Tree = dict[str, dict[str, np.ndarray]]  # module path -> parameter name -> array, as Haiku has them

# The names that may be called, and what _reduce makes of them. NumPy and Haiku have moved some over the years.
_CALLS = {
    ("numpy.core.multiarray", "_reconstruct"): "empty array",
    ("numpy._core.multiarray", "_reconstruct"): "empty array",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("numpy", "dtype"): "dtype",
    ("dill._dill", "_create_array"): "dill array",
    ("jax._src.array", "_reconstruct_array"): "jax array",
    ("haiku._src.data_structures", "FlatMapping"): "dict",
    ("haiku._src.data_structures", "frozendict"): "dict",
    ("builtins", "dict"): "dict",
}
# Names that may appear, as arguments of the above, but not be called.
_ALLOWED = {*_CALLS, ("numpy", "ndarray")}

_VALUES = {
    "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8",
    "BININT", "BININT1", "BININT2", "LONG1",
}  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(ValueError):
    """The file asks for something that a tree of arrays does not need."""


@dataclass
class _Name:
    """A module-level name that the file mentions; never looked up."""

    module: str
    name: str


@dataclass
class _DType:
    """A dtype in the making: NumPy sends its byte order afterwards."""

    code: str
    order: str = "="

    def numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


@dataclass
class _Array:
    """An array in the making: NumPy sends its shape and content afterwards."""

    value: np.ndarray | None = None


def read_tree(path: str | Path) -> Tree:
    """Return the parameter tree in one of the authors' files; its arrays are float32, finite, and read-only.

    Raises:
        ValueError: If the file is no such pickle, is damaged, asks for anything but a tree of arrays, or holds arrays
            that are not float32 or not finite. The message says what was found and what was expected.
        OSError: If the file cannot be opened.
    Source: ``load_haiku_file`` in deepmind-research/nfnets/utils.py, which needs dill, Haiku and JAX, and trusts the
        file.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(4)
        if not head:
            raise ValueError(f"{path} is empty: expected one of the authors' F*_haiku.npz files, a pickle")
        if head == b"PK\x03\x04":
            raise ValueError(
                f"{path} is a zip archive, a real .npz perhaps: expected one of the authors' F*_haiku.npz files, "
                "which are pickles in spite of their name. Read a real .npz with numpy.load"
            )
        if head[:1] != b"\x80":
            raise ValueError(
                f"{path} is no pickle, it begins with {head!r}: expected one of the authors' F*_haiku.npz files"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                tree = _Interpreter(data).run()
            except _Refused as error:
                raise ValueError(f"{path} is not loaded: {error}") from None
            # What pickletools raises on bytes that are no opcodes, and the stack on opcodes out of order.
            except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
                raise ValueError(
                    f"{path} is damaged or truncated ({type(error).__name__}: {str(error)[:200]}): expected one of the "
                    "authors' F*_haiku.npz files. Download it again and compare its size"
                ) from None
    return _checked(tree, path)


def write_tree(tree: Tree, path: str | Path) -> None:
    """Write ``tree`` as the authors' ``load_haiku_file`` reads it: a pickle of dicts of NumPy arrays."""
    with Path(path).open("wb") as file:
        pickle.dump({module: dict(params) for module, params in tree.items()}, file, protocol=4)


def _checked(tree: Any, path: Path) -> Tree:
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}: expected a dict of modules")
    for module, params in tree.items():
        if not isinstance(params, dict):
            raise ValueError(f"{path}: {module!r} holds a {type(params).__name__}: expected a dict of parameters")
        for name, entry in params.items():
            array = entry.value if isinstance(entry, _Array) else None
            if array is None:
                raise ValueError(f"{path}: {module}/{name} is no array: expected float32 values")
            if array.dtype != np.float32:
                raise ValueError(f"{path}: {module}/{name} is {array.dtype}: expected float32")
            bad = int(np.count_nonzero(~np.isfinite(array)))
            if bad:
                raise ValueError(
                    f"{path}: {module}/{name} has {bad} NaN or infinite values of {array.size}: expected finite weights"
                )
            params[name] = array
    return tree


class _Interpreter:
    """One pass over the opcodes of a pickle, with a stack of inert values."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.array_bytes = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        # An mmap reads like a file.
        for opcode, arg, position in pickletools.genops(self.data):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                break
            try:
                self.step(opcode.name, arg)
            except _Refused as error:
                raise _Refused(f"{error} (opcode {opcode.name} at byte {position})") from None
        if self.data.tell() != len(self.data):
            raise _Refused(f"{len(self.data) - self.data.tell()} bytes follow its end")
        if len(self.stack) != 1 or self.marks:
            raise _Refused(f"it leaves {len(self.stack)} values: expected one tree")
        return self.stack[0]

    def step(self, name: str, arg: Any) -> None:
        if name in ("PROTO", "FRAME"):
            pass
        elif name in _VALUES:
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name == "EMPTY_TUPLE":
            self.stack.append(())
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            self.stack.append(tuple(self.pop_to_mark()))
        elif name in _TUPLES:
            self.stack.append(tuple(self.pop(_TUPLES[name])))
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[arg])
        elif name == "SETITEM":
            self.set_items(self.pop(2))
        elif name == "SETITEMS":
            self.set_items(self.pop_to_mark())
        elif name == "GLOBAL":
            self.stack.append(_allowed(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            self.stack.append(_allowed(*self.pop(2)))
        elif name == "REDUCE":
            function, args = self.pop(2)
            self.stack.append(self.reduce(function, args))
        elif name == "BUILD":
            (state,) = self.pop(1)
            self.build(self.top(), state)
        else:
            raise _Refused("a tree of arrays needs no such instruction")

    def top(self) -> Any:
        self.pop(0)
        return self.stack[-1]

    def pop(self, count: int) -> list[Any]:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) - max(count, 1) < floor:
            raise _Refused("it takes more values than there are")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise _Refused("it goes back to a mark that was not set")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise _Refused(f"it sets {len(items)} items of a {type(target).__name__}, expected pairs for a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise _Refused(f"it has a key that is a {type(key).__name__}, expected a string")
            target[key] = value

    def reduce(self, function: Any, args: Any) -> Any:
        """Return what the call ``function(*args)`` stands for, if it is one that a tree of arrays needs."""
        call = _CALLS.get((function.module, function.name)) if isinstance(function, _Name) else None
        if call is None or not isinstance(args, tuple):
            raise _Refused(f"it calls {_shown(function)}, which a tree of arrays does not need")
        match call, args:
            case "empty array", (_Name("numpy", "ndarray"), (0,), b"b"):
                return _Array()
            case "dtype", (str(code), _, _) if re.fullmatch(r"[<>=|]?[biuf][1248]", code):
                return _DType(code)
            case "scalar", (_DType() as dtype, bytes(content)):
                return _Array(self.array(content, dtype, (), fortran=False))
            case "buffer", (bytes() | bytearray() as content, _DType() as dtype, tuple(shape), "C" | "F" as order):
                return _Array(self.array(bytes(content), dtype, shape, fortran=order == "F"))
            case "dill array", (inner, inner_args, state, None):
                return self.build(self.reduce(inner, inner_args), state)
            case "jax array", (inner, inner_args, state, dict()):
                return self.build(self.reduce(inner, inner_args), state)
            case "dict", ():
                return {}
            case "dict", (dict(mapping),):
                return dict(mapping)
        raise _Refused(f"it calls {_shown(function)} with arguments that it is not known to take")

    def build(self, target: Any, state: Any) -> Any:
        """Fill an array or a dtype in the making with the state that NumPy sends, and return it."""
        match target, state:
            case _Array(value=None), (int(), tuple(shape), _DType() as dtype, bool(fortran), bytes(content)):
                target.value = self.array(content, dtype, shape, fortran)
            case _DType(), (3, "<" | ">" | "|" | "=" as order, None, None, None, -1, -1, 0):
                target.order = order
            case _:
                raise _Refused(f"it gives a {type(target).__name__.strip('_')} a state that NumPy does not write")
        return target

    def array(self, content: bytes, dtype: _DType, shape: tuple[Any, ...], fortran: bool) -> np.ndarray:
        if not all(type(n) is int and 0 <= n < 2**31 for n in shape) or len(shape) > 4:
            raise _Refused(f"it has an array of shape {str(shape)[:80]}, expected up to four sizes")
        size = dtype.numpy().itemsize
        for n in shape:
            size *= n
        if size != len(content):
            raise _Refused(f"an array of shape {shape} and type {dtype.code} needs {size} bytes, it has {len(content)}")
        self.array_bytes += size
        if self.array_bytes > len(self.data):  # the same bytes, again and again
            raise _Refused("its arrays are larger than the file")
        array = np.frombuffer(content, dtype.numpy()).reshape(shape, order="F" if fortran else "C")
        return array.astype(array.dtype.newbyteorder("="), copy=False)


def _allowed(module: Any, name: Any) -> _Name:
    if (module, name) not in _ALLOWED:
        raise _Refused(f"it names {str(module)[:80]}.{str(name)[:80]}, which a tree of arrays does not need")
    return _Name(module, name)


def _shown(value: Any) -> str:
    return f"{value.module}.{value.name}" if isinstance(value, _Name) else f"a {type(value).__name__}"

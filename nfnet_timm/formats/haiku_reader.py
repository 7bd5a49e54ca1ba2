"""Reads the authors' checkpoint files, which are pickles, and runs no code in them.

The authors wrote and read ``F*_haiku.npz`` with ``dill``, which runs any code in a file. This module does not unpickle.
It interprets the few instructions that describe a tree of arrays, builds plain Python values, and imports nothing that
the file names. The only "calls" are those in ``_Interpreter.reduce``. It refuses all other instructions. The number of
instructions, the lengths of strings and tuples, and the depth of tuples are limited.

Source: dill 0.3.3 wrote the released files under Python 3.7 and NumPy 1.18. tests/data/README.md lists other files.
"""

import math
import mmap
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Tree", "forget", "read_tree"]

Tree = dict[str, dict[str, np.ndarray]]  # module path -> parameter name -> array, as in Haiku

# The modules that contain NumPy's _reconstruct in its various versions.
_NUMPY_MODULES = (
    "numpy.core.multiarray",
    "numpy.core._multiarray_umath",
    "numpy._core.multiarray",
    "numpy._core._multiarray_umath",
)
# The names that a file may call, with the case of ``reduce`` for each. NumPy and Haiku have moved some of them.
_CALLS = {
    ("numpy.core.multiarray", "_reconstruct"): "empty array",
    ("numpy._core.multiarray", "_reconstruct"): "empty array",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("numpy", "dtype"): "dtype",
    ("dill._dill", "_import_module"): "module",
    ("dill._dill", "_get_attr"): "attribute",
    ("dill._dill", "_create_array"): "dill array",
    ("jax._src.array", "_reconstruct_array"): "jax array",
    ("haiku._src.data_structures", "FlatMapping"): "dict",
    ("haiku._src.data_structures", "frozendict"): "dict",
    ("builtins", "dict"): "dict",
}
# All names that a file may contain. numpy.ndarray may only be the argument of a call.
_ALLOWED = {*_CALLS, ("numpy", "ndarray")}

# Limits for one file. F7 has 70,000 instructions, keys of 60 letters, and tuples of five items, nested three deep.
_MOST_INSTRUCTIONS, _LONGEST_KEY = 1_000_000, 200
_LONGEST_STRING = 1_000  # bytes
_LONGEST_TUPLE, _DEEPEST_TUPLE = 8, 4

_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
# Instructions by the form of their argument. The number is the size of the argument in bytes. For _STRINGS and _BYTES,
# it is the size of the length, which precedes the content.
_SKIPPED = {"PROTO": 1, "FRAME": 8}
_INTEGERS = {"BININT": 4, "BININT1": 1, "BININT2": 2}
_PUTS = {"BINPUT": 1, "LONG_BINPUT": 4}
_GETS = {"BINGET": 1, "LONG_BINGET": 4}
_STRINGS = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}
_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(ValueError):
    """The file contains an instruction that a tree of arrays does not need."""


class _Damaged(ValueError):
    """The file is not a valid sequence of instructions."""


class _Tuple(tuple):
    """A tuple with its nesting depth."""

    depth = 1


@dataclass(frozen=True)
class _Name:
    """A module-level name in the file, or a module if ``name`` is empty. It is never imported."""

    module: str
    name: str


@dataclass
class _DType:
    """A dtype. Its byte order comes in a later instruction (BUILD)."""

    code: str
    order: str = "="

    def numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


@dataclass
class _Array:
    """An array. Its shape and content come in a later instruction (BUILD)."""

    value: np.ndarray | None = None


def read_tree(path: str | Path) -> Tree:
    """Return the parameter tree of float32 arrays in one of the authors' files.

    The arrays are views of the memory-mapped file. Do not change the file while you use them. Writing to an array does
    not change the file.

    Raises:
        ValueError: If the file is damaged, or is not a pickle of a tree of float32 arrays.
        OSError: If the file cannot be opened.
    Source: ``load_haiku_file`` in deepmind-research/nfnets/utils.py, which needs dill, Haiku and JAX.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or a device cannot be mapped
        raise ValueError(f"{path} is not a regular file: expected one of the authors' F*_haiku.npz files")
    with path.open("rb") as file:
        head = file.read(4)
        if not head:
            raise ValueError(f"{path} is empty: expected one of the authors' F*_haiku.npz files, a pickle")
        if head == b"PK\x03\x04":
            raise ValueError(
                f"{path} is a zip archive, perhaps a real .npz: expected one of the authors' F*_haiku.npz files, which "
                "are pickles. Read a real .npz with numpy.load, and publish a file of torch.save with `nfnet-timm "
                "publish`"
            )
        if head[:1] != b"\x80":
            raise ValueError(
                f"{path} is not a pickle, it begins with {head!r}: expected one of the authors' F*_haiku.npz files"
            )
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    try:
        tree = _Interpreter(data).run()
    except _Damaged as error:
        raise ValueError(
            f"{path} is damaged or truncated ({error}): expected one of the authors' F*_haiku.npz files. Download it "
            "again and compare its size"
        ) from None
    except _Refused as error:
        raise ValueError(f"{path} is not loaded: {error}") from None
    return _checked(tree, path)


def forget(array: np.ndarray) -> None:
    """Free the memory of a view of a mapped file. The next use of the view reads the file again."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else None
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise") and array.nbytes:
        start = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
        page = start - start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, page, start + array.nbytes - page)


def _checked(tree: Any, path: Path) -> Tree:
    if not isinstance(tree, dict):
        raise ValueError(f"{path} contains a {_kind(tree)}: expected a dict of modules")
    out: Tree = {}
    for module, params in tree.items():
        if not isinstance(params, dict):
            raise ValueError(f"{path}: {module!r} is a {_kind(params)}: expected a dict of parameters")
        out[module] = {}
        for name, entry in params.items():
            array = entry.value if isinstance(entry, _Array) else None
            if array is None:
                raise ValueError(f"{path}: {module}/{name} is not an array: expected float32 values")
            if array.dtype != np.float32:
                raise ValueError(f"{path}: {module}/{name} is {array.dtype}: expected float32")
            out[module][name] = array
    return out


class _Interpreter:
    """Interprets the instructions of a pickle in one pass, with a stack of plain values."""

    def __init__(self, data: memoryview):
        self.data = data
        self.at = 0  # position in the file
        self.array_bytes = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MOST_INSTRUCTIONS):
            position = self.at
            code = self.number(1)
            name = _OPCODES.get(code)
            if name is None:
                raise _Damaged(f"byte {position} is {code:#04x}, which is not an instruction")
            if name == "STOP":
                break
            try:
                self.step(name)
            except _Refused as error:
                raise _Refused(f"{error} (opcode {name} at byte {position})") from None
        else:
            raise _Refused(f"it has more than {_MOST_INSTRUCTIONS:,} instructions")
        rest = len(self.data) - self.at
        if rest:
            raise _Refused(f"{rest} bytes follow its end")
        if len(self.stack) != 1 or self.marks:
            raise _Refused(f"it leaves {len(self.stack)} values: expected one tree")
        return self.stack[0]

    def step(self, name: str) -> None:
        if name in _PUTS:
            self.memo[self.number(_PUTS[name])] = self.top()
        elif name in _GETS:
            index = self.number(_GETS[name])
            if index not in self.memo:
                raise _Refused(f"it gets value {index} from the memo, which it has not put there")
            self.stack.append(self.memo[index])
        elif name in _INTEGERS:
            self.stack.append(self.number(_INTEGERS[name], signed=name == "BININT"))
        elif name in _STRINGS:
            self.stack.append(self.text(self.number(_STRINGS[name])))
        elif name in _BYTES:
            self.stack.append(self.take(self.number(_BYTES[name])))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            self.stack.append(_tuple(self.pop_to_mark()))
        elif name in _TUPLES:
            self.stack.append(_tuple(self.pop(_TUPLES[name])))
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name == "SETITEM":
            self.set_items(self.pop(2))
        elif name == "SETITEMS":
            self.set_items(self.pop_to_mark())
        elif name == "GLOBAL":
            self.stack.append(_allowed(self.line(), self.line()))
        elif name == "STACK_GLOBAL":
            self.stack.append(_allowed(*self.pop(2)))
        elif name == "REDUCE":
            function, args = self.pop(2)
            self.stack.append(self.reduce(function, args))
        elif name == "BUILD":
            (state,) = self.pop(1)
            self.build(self.top(), state)
        elif name in _SKIPPED:
            self.take(_SKIPPED[name])
        else:
            raise _Refused("a tree of arrays needs no such instruction")

    def take(self, count: int) -> memoryview:
        """Return the next bytes of the file, as a view."""
        if count > len(self.data) - self.at:
            raise _Damaged(
                f"it ends after byte {self.at}: expected {count} more bytes, found {len(self.data) - self.at}"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def text(self, count: int) -> str:
        content = self.take(count)
        if count > _LONGEST_STRING:
            raise _Refused(f"it has a string of {count} bytes, expected at most {_LONGEST_STRING}")
        try:
            return bytes(content).decode()
        except UnicodeDecodeError as error:
            raise _Damaged(f"a string at byte {self.at - count} is not UTF-8: {error.reason}") from None

    def line(self) -> str:
        count = bytes(self.data[self.at : self.at + _LONGEST_STRING]).find(b"\n")
        if count < 0:
            raise _Damaged(f"a name at byte {self.at} does not end")
        return self.text(count + 1)[:-1]

    def top(self) -> Any:
        self.stack += self.pop(1)
        return self.stack[-1]

    def pop(self, count: int) -> list[Any]:
        bottom = self.marks[-1] if self.marks else 0
        if len(self.stack) - count < bottom:
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
            raise _Refused(f"it sets {len(items)} items of a {_kind(target)}, expected pairs for a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise _Refused(f"it has a key that is a {_kind(key)}, expected a string")
            if not key.isprintable() or len(key) > _LONGEST_KEY:
                raise _Refused(f"it has a key that is not a name: {key[:40]!a}, {len(key)} letters")
            target[key] = value

    def reduce(self, function: Any, args: Any) -> Any:
        """Return the result of the call ``function(*args)``; refuse calls that a tree of arrays does not need."""
        call = _CALLS.get((function.module, function.name)) if isinstance(function, _Name) else None
        if call is None or not isinstance(args, tuple):
            raise _Refused(f"it calls {_shown(function)}, which a tree of arrays does not need")
        match call, args:
            case "empty array", (_Name("numpy", "ndarray"), (0,), memoryview() as code) if code == b"b":
                return _Array()
            case "module", (str(module),) if module in _NUMPY_MODULES:
                return _Name(module, "")
            case "attribute", (_Name(name=""), "_reconstruct"):
                return _Name("numpy.core.multiarray", "_reconstruct")
            case "dtype", (str(code), _, _) if re.fullmatch(r"b1|[iu][1248]|f[248]", code):
                return _DType(code)
            case "scalar", (_DType() as dtype, memoryview() as content):
                return _Array(self.array(content, dtype, (), fortran=False))
            case "buffer", (memoryview() as content, _DType() as dtype, tuple(shape), "C" | "F" as order):
                return _Array(self.array(content, dtype, shape, fortran=order == "F"))
            # A transposed array, since NumPy 2.3.
            case "buffer", (memoryview() as content, _DType() as dtype, tuple(shape), "K", tuple(axes)) if sorted(
                axes, key=str
            ) == list(range(len(shape))):
                return _Array(self.array(content, dtype, shape, fortran=False).transpose(axes))
            case "dill array", (inner, inner_args, state, None):
                return self.build(self.reduce(inner, inner_args), state)
            case "jax array", (inner, inner_args, state, dict()):
                return self.build(self.reduce(inner, inner_args), state)
            case "dict", ():
                return {}
            case "dict", (dict(mapping),):
                return mapping  # not a copy: with copies, a small file could use any amount of memory
        raise _Refused(f"it calls {_shown(function)} with unexpected arguments")

    def build(self, target: Any, state: Any) -> Any:
        """Complete an array or a dtype with the state in the file, and return it."""
        match target, state:
            case _Array(value=None), (int(), tuple(shape), _DType() as dtype, bool(fortran), memoryview() as content):
                target.value = self.array(content, dtype, shape, fortran)
            case _DType(), (3, "<" | ">" | "|" | "=" as order, None, None, None, -1, -1, 0):
                target.order = order
            case _:
                raise _Refused(f"it gives a {_kind(target)} a state that NumPy does not write")
        return target

    def array(self, content: memoryview, dtype: _DType, shape: tuple[Any, ...], fortran: bool) -> np.ndarray:
        if len(shape) > 4 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise _Refused("it has an array whose shape is not up to four sizes")
        size = dtype.numpy().itemsize * math.prod(shape)
        if size != len(content):
            raise _Refused(f"an array of shape {shape} and type {dtype.code} needs {size} bytes, it has {len(content)}")
        self.array_bytes += size
        if self.array_bytes > len(self.data):  # several arrays share the same bytes
            raise _Refused("its arrays are larger than the file")
        array = np.frombuffer(content, dtype.numpy()).reshape(shape, order="F" if fortran else "C")
        return array.astype(array.dtype.newbyteorder("="), copy=False)


def _tuple(items: list[Any]) -> _Tuple:
    out = _Tuple(items)
    out.depth += max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
    if len(out) > _LONGEST_TUPLE or out.depth > _DEEPEST_TUPLE:
        raise _Refused(
            f"it has a tuple of {len(out)} values, nested {out.depth} deep: expected at most {_LONGEST_TUPLE}, and "
            f"{_DEEPEST_TUPLE} deep"
        )
    return out


def _allowed(module: Any, name: Any) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise _Refused(f"it names something by a {_kind(module)} and a {_kind(name)}, expected strings")
    if (module, name) not in _ALLOWED:
        raise _Refused(f"it names {module[:80]!a}, {name[:80]!a}, which a tree of arrays does not need")
    return _Name(module, name)


def _kind(value: Any) -> str:
    kinds = {_Name: "name", _DType: "dtype", _Array: "array", _Tuple: "tuple", memoryview: "bytes"}
    return kinds.get(type(value), type(value).__name__)


def _shown(value: Any) -> str:
    return f"{value.module}.{value.name}" if isinstance(value, _Name) else f"a {_kind(value)}"

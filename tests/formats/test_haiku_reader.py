"""The reader reads the authors' files and refuses pickles that contain anything but a tree of arrays."""

import os
import pickle
import pickletools
import random
import struct
import zlib
from pathlib import Path

import authors_file
import golden
import numpy as np
import pytest

from nfnet_timm.formats.haiku_reader import forget, read_tree

TREE = {"NFNet/~/linear": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}}


@pytest.fixture
def read(tmp_path):
    """Return a function that writes bytes to a file and reads it."""

    def read(content):
        path = tmp_path / "F0_haiku.npz"
        path.write_bytes(content)
        return read_tree(path)

    return read


@pytest.mark.parametrize("name", ["haiku_2021", "dill2025_dict", "dill2025_flatmap"])
def test_tiny_network_is_read_exactly(name):
    golden.assert_same_tree(read_tree(golden.DATA / f"nfnet_tiny_{name}.npz"), golden.tree("nfnet_tiny_train"))


@pytest.mark.parametrize("file", sorted((golden.DATA / "dill").glob("*.npz")), ids=lambda file: file.stem)
def test_all_versions_of_dill_numpy_protocols_and_byte_orders_are_read(file):
    shapes = {
        "NFNet/~/linear": {"b": (3,), "w": (4, 3)},
        "NFNet/~/nf_block": {"skip_gain": ()},
        "NFNet/~/stem_conv0": {"bias": (4,), "gain": (4,), "w": (3, 3, 3, 4)},
    }
    expected = {m: {p: sample(m, p, shape) for p, shape in ps.items()} for m, ps in shapes.items()}
    golden.assert_same_tree(read_tree(file), expected)


def sample(module, name, shape):
    """Return the same array that tests/data/dill/make.py wrote."""
    return np.asarray(np.random.RandomState(zlib.crc32(f"{module}/{name}".encode())).randn(*shape), dtype=np.float32)


def test_jax_arrays_and_numbers_of_numpy_are_read(read):
    expected = golden.tree("nfnet_tiny_train")
    tree = read_tree(golden.DATA / "dill2025_jax_arrays.npz")
    assert tree["NFNet/~/linear"]["w"].shape == (3, 4)
    assert np.array_equal(tree["NFNet/~/nf_block"]["skip_gain"], expected["NFNet/~/nf_block"]["skip_gain"])
    assert read(pickle.dumps({"m": {"gain": np.float32(2.5)}}))["m"]["gain"] == 2.5
    kernel = np.arange(120, dtype=np.float32).reshape(5, 4, 3, 2).transpose(2, 3, 1, 0)  # as from PyTorch
    assert np.array_equal(read(pickle.dumps({"m": {"w": kernel}}, protocol=5))["m"]["w"], kernel)
    assert read(pickle.dumps({})) == {}


def test_writer_of_the_tests_gives_the_same_bytes_as_the_old_versions(tmp_path):
    """The writer replaces files that the tests do not have.

    Python 3.7, dill 0.3.3 and NumPy 1.18.5 wrote the file that it is compared with.
    """
    authors_file.write(golden.tree("nfnet_tiny_train"), tmp_path / "tiny.npz")
    assert (tmp_path / "tiny.npz").read_bytes() == (golden.DATA / "nfnet_tiny_haiku_2021.npz").read_bytes()


def test_arrays_are_not_copied_and_the_file_is_not_changed(tmp_path):
    path = tmp_path / "tiny.npz"
    authors_file.write(golden.tree("nfnet_tiny_train"), path)
    before = path.read_bytes()
    kernel = read_tree(path)["NFNet/~/final_conv"]["w"]
    assert not kernel.flags.owndata
    kernel[...] = 0
    forget(kernel)
    assert path.read_bytes() == before
    assert np.array_equal(kernel, golden.tree("nfnet_tiny_train")["NFNet/~/final_conv"]["w"])  # read again


# --- files that are no such tree


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "F0_haiku.npz")
    with pytest.raises(ValueError, match="F0_haiku.npz is not a regular file"):
        read_tree(tmp_path / "F0_haiku.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (pickle.dumps(TREE, protocol=0), "is not a pickle, it begins with"),
        (b"PK\x03\x04", r"zip archive, perhaps a real \.npz.*numpy\.load.*`nfnet-timm publish`"),
        (pickle.dumps([1, 2]), "is not loaded"),
        (pickle.dumps("text"), "contains a str: expected a dict of modules"),
        (pickle.dumps(()), "contains a tuple: expected a dict of modules"),
        (pickle.dumps({"m": 3}), "'m' is a int: expected a dict of parameters"),
        (pickle.dumps({"m": {"w": 3}}), "m/w is not an array: expected float32"),
        (pickle.dumps({"m": {"w": np.zeros(2)}}), "m/w is float64: expected float32"),
        (pickle.dumps({"m\n": {"w": np.zeros(2)}}), "a key that is not a name: .* 2 letters"),
        (pickle.dumps({"m" * 300: {"w": np.zeros(2)}}), "a key that is not a name: 'mmmm.*300 letters"),
        (pickle.dumps({3: {"w": np.zeros(2)}}), "key that is a int, expected a string"),
        (pickle.dumps(TREE) + b"x", "1 bytes follow its end"),
    ],
)
def test_error_for_other_files_says_what_was_found_and_expected(read, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(content)
    assert "F0_haiku.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_file_is_refused(read):
    content = pickle.dumps(TREE, protocol=4)
    for end in range(1, len(content)):
        with pytest.raises(ValueError, match="damaged or truncated"):
            read(content[:end])


# --- hostile files, put together from instructions of protocol 3


def word(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def leaf(value: bytes) -> bytes:
    """Return a pickle of {"m": {"w": value}}."""
    return b"\x80\x03}" + word("m") + b"}" + word("w") + value + b"ss."


FROM_BUFFER = named("numpy._core.numeric", "_frombuffer")
IMPORT, GET = named("dill._dill", "_import_module"), named("dill._dill", "_get_attr")
NDARRAY, DTYPE_CLASS = named("numpy", "ndarray"), named("numpy", "dtype")
MULTIARRAY = call(IMPORT, word("numpy.core._multiarray_umath"))
RECONSTRUCT = call(GET, MULTIARRAY, word("_reconstruct"))  # as dill writes it
EMPTY = call(RECONSTRUCT, NDARRAY, b"K\x00\x85", b"C\x01b")
DTYPE = call(DTYPE_CLASS, word("f4"), b"K\x00", b"K\x01")
DTYPE += b"(K\x03" + word("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def array(shape: bytes, content: bytes, dtype: bytes = DTYPE) -> bytes:
    return EMPTY + b"(K\x01" + shape + dtype + b"\x89B" + struct.pack("<I", len(content)) + content + b"tb"


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


SYSTEM, TOUCH = named("os", "system"), word("touch PWNED")
EXEC = word("open('PWNED', 'w').write('x')")
HOSTILE = {
    # calls
    "os.system": b"\x80\x03" + call(SYSTEM, TOUCH) + b".",
    "a name that is not UTF-8": leaf(b"cnumpy\n\xff\n"),
    "dict called with a string": leaf(call(named("builtins", "dict"), word("x"))),
    "dtype with a byte order that no state repeats": leaf(
        array(b"K\x01\x85", b"\0\0\x80?", call(DTYPE_CLASS, word(">f4"), b"\x89", b"\x88"))
    ),
    "dtype that evaluates": leaf(call(DTYPE_CLASS, EXEC, b"\x89", b"\x88")),
    "call of a string": leaf(call(word("os.system"), TOUCH)),
    "call without a tuple": leaf(named("builtins", "dict") + b"}R"),
    "another module": leaf(call(call(GET, call(IMPORT, word("os")), word("system")), TOUCH)),
    "another function": leaf(call(call(GET, MULTIARRAY, word("fromfile")), word("x"))),
    "an attribute of a string": leaf(call(GET, word("numpy.core.multiarray"), word("_reconstruct"))),
    "an attribute of a name": leaf(call(GET, NDARRAY, word("_reconstruct"))),
    "a module of a module": leaf(call(IMPORT, MULTIARRAY)),
    "a module left as a value": leaf(MULTIARRAY),
    "a module with a state": leaf(MULTIARRAY + b"}b"),
    "an array of another type": leaf(call(RECONSTRUCT, named("builtins", "dict"), b"K\x00\x85", b"C\x01b")),
    "an array that is not empty": leaf(call(RECONSTRUCT, NDARRAY, b"K\x07\x85", b"C\x01b")),
    "an array of objects": leaf(call(RECONSTRUCT, NDARRAY, b"K\x00\x85", b"C\x01O")),
    # instructions
    "instance": leaf(b"(ios\nsystem\n"),
    "new object": leaf(SYSTEM + b")\x81"),
    "name put together from numbers": leaf(b"K\x01K\x02\x93"),
    "memo that was never set": leaf(b"h\x07"),
    "not an instruction": leaf(b"\xff"),
    "pop of nothing": b"\x80\x03s.",
    "mark that was never set": b"\x80\x03t.",
    "tuple across a mark": b"\x80\x03K\x01(K\x02\x86.",
    "items of a tuple": leaf(b")(" + word("a") + b"K\x01u"),
    "odd number of items": leaf(b"}(" + word("a") + b"u"),
    "terabytes of array": leaf(array(number(2**30) * 2 + b"\x86", bytes(4))),
    "negative sizes": leaf(array(number(-3) + number(-1) + b"\x86", bytes(12))),
    "size that is not a number": leaf(array(word("3") + b"\x85", bytes(12))),
    "axes that are not those of the array": leaf(
        call(FROM_BUFFER, b"C\x04\0\0\0\0", DTYPE, b"K\x01\x85", word("K"), b"K\x01\x85")
    ),
    "more sizes than a kernel has": leaf(array(b"(" + b"K\x01" * 5 + b"t", bytes(4))),
    "terabytes of bytes": leaf(b"\x8e" + struct.pack("<Q", 2**40) + b"x"),
    "a string of many kilobytes": leaf(word("x" * 2000)),
    "a name without end": b"\x80\x03cos",
    "two values": b"\x80\x03}}.",
    "an open mark": b"\x80\x03(}.",
}


def test_unchanged_pieces_of_the_hostile_files_give_a_valid_file(read):
    """So each hostile file is refused because of its change."""
    golden.assert_same_tree(read(leaf(array(b"K\x02\x85", bytes(8)))), {"m": {"w": np.zeros(2, np.float32)}})
    assert read(b"\x80\x03" + call(named("builtins", "dict")) + b".") == {}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_before_anything_runs(read, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"F0_haiku\.npz") as error:
        read(content)
    assert not (tmp_path / "PWNED").exists()
    assert len(str(error.value)) < 600


NESTED = b")" + b"\x85" * 200_000
ITEMS = b"(" + b"".join(word(f"k{i}") + b"N" for i in range(100)) + b"u"
COPIES = b"(" + b"".join(word(f"m{i}") + named("builtins", "dict") + b"h\x00\x85R" for i in range(100_000)) + b"u"
BOMBS = {
    "a tuple of 2 ** 30 values as a shape": leaf(array(b")" + b"q\x00h\x00\x86" * 30, bytes(8))),
    "nested tuples as a name": b"\x80\x04}" + NESTED + NESTED + b"\x93.",
    "nested tuples as a module": b"\x80\x04" + IMPORT + NESTED + b"\x85R.",
    "copies of a dict": b"\x80\x04}" + ITEMS + b"q\x00}" + COPIES + b".",
    "marks": b"\x80\x04" + b"(" * (1 << 20) + b".",
    "the memo": b"\x80\x04N" + b"\x94" * (1 << 20) + b".",
    "dicts in dicts": b"\x80\x04" + (b"}" + word("k")) * 100_000 + b"N" + b"s" * 100_000 + b".",
    "a dict in itself": b"\x80\x04}q\x00" + word("k") + b"h\x00s.",
}
LIMITED = """
import os, resource
from nfnet_timm.formats.haiku_reader import read_tree
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (160 << 20), -1))
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
try:
    read_tree(os.environ["BOMB"])
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much memory a process has")
@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_small_files_are_refused_in_little_time_and_memory(run_python, tmp_path, content):
    """Each once blocked the reader, crashed it, or took hundreds of megabytes."""
    path = tmp_path / "F0_haiku.npz"
    path.write_bytes(content)
    message = run_python(LIMITED, BOMB=str(path)).removesuffix("\n")
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 800


def test_arrays_that_share_bytes_are_refused(read):
    """A thousand arrays share one megabyte. Copies of them would take a gigabyte."""
    blob = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x00"
    shared = call(FROM_BUFFER + b"q\x01", blob, DTYPE + b"q\x02", number(1 << 18) + b"\x85", word("C"))
    again = call(b"h\x01", b"h\x00h\x02", number(1 << 18) + b"\x85", word("C"))
    assert read(leaf(shared))["m"]["w"].shape == (1 << 18,)
    items = word("w") + shared + b"".join(word(f"w{i}") + again for i in range(1000))
    with pytest.raises(ValueError, match="larger than the file"):
        read(b"\x80\x03}(" + items + b"u.")


def test_no_module_is_imported_for_a_name(run_python):
    out = run_python(
        "import sys\n"
        "from nfnet_timm.formats.haiku_reader import read_tree\n"
        f"read_tree({str(golden.DATA / 'dill2025_jax_arrays.npz')!r})\n"
        "print([m for m in ('jax', 'haiku', 'dill', 'torch', 'timm') if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_random_damage_gives_a_tree_or_a_valueerror(read):
    """Flip, insert, delete and duplicate bytes of a valid file. No other type of error may occur."""
    r = random.Random(0)
    good = (golden.DATA / "dill2025_jax_arrays.npz").read_bytes()
    opcodes = bytes(ord(op.code) for op in pickletools.opcodes)
    for _ in range(500):
        data = bytearray(good)
        for _ in range(r.randint(1, 6)):
            at = r.randrange(2, len(data))
            other = r.choice((r.randbytes(1), bytes([r.choice(opcodes)]), data[at : at + r.randint(1, 30)], b""))
            data[at : at + r.choice((0, 1, r.randint(1, 9)))] = other
        try:
            tree = read(bytes(data))
        except ValueError as error:
            assert "F0_haiku.npz" in str(error)
            assert len(str(error)) < 800
            assert str(error).isprintable()
        else:
            assert all(a.dtype == np.float32 for ps in tree.values() for a in ps.values())

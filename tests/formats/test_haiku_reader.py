"""The reader reads the authors' files and refuses pickles that contain anything but a tree of arrays."""

import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import zipfile
import zlib

import authors_file
import golden
import numpy as np
import pytest
from golden import ROOT

from nfnet_timm.formats.authors import load_state_dict
from nfnet_timm.formats.haiku_reader import forget, read_tree

TREE = {"NFNet/~/linear": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}}


@pytest.fixture
def read(tmp_path):
    """Return a function that writes bytes or a pickled object to a file and reads it."""

    def read(content):
        path = tmp_path / "F0_haiku.npz"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4))
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


def test_open_file_gives_the_same_tree_as_its_path():
    path = golden.DATA / "nfnet_tiny_haiku_2021.npz"
    expected = load_state_dict(path)
    with path.open("rb") as file:
        for source in (io.BytesIO(path.read_bytes()), file):
            found = load_state_dict(source)
            assert found.keys() == expected.keys()
            assert all(found[key].equal(t) for key, t in expected.items())
    for content in (b"", path.read_bytes()[:1000], b"text"):
        with pytest.raises(ValueError, match="F\\*_haiku.npz"):
            load_state_dict(io.BytesIO(content))


def test_jax_arrays_are_read_without_jax():
    expected = golden.tree("nfnet_tiny_train")
    tree = read_tree(golden.DATA / "dill2025_jax_arrays.npz")
    assert tree["NFNet/~/linear"]["w"].shape == (3, 4)
    assert np.array_equal(tree["NFNet/~/nf_block"]["skip_gain"], expected["NFNet/~/nf_block"]["skip_gain"])


def test_every_protocol_with_bytes_is_read(read):
    for protocol in (3, 4, 5):
        golden.assert_same_tree(read(pickle.dumps(TREE, protocol=protocol)), TREE)


def test_numpy_layouts_and_byte_orders_are_read(read):
    w = TREE["NFNet/~/linear"]["w"]
    tree = read({"m": {"fortran": np.asfortranarray(w), "big": w.astype(">f4"), "scalar": np.float32(2.5)}})
    assert np.array_equal(tree["m"]["fortran"], w)
    assert np.array_equal(tree["m"]["big"], w)
    assert tree["m"]["big"].dtype == np.float32
    assert tree["m"]["scalar"] == 2.5


# --- files that are no such tree


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is not a pickle, it begins with b'hell'"),
        (pickle.dumps(TREE, protocol=0), "is not a pickle"),
        (pickle.dumps([1, 2]), "is not loaded"),
        (pickle.dumps({}), None),
        (pickle.dumps("text"), "contains a str: expected a dict of modules"),
        (pickle.dumps({"m": 3}), "'m' is a int: expected a dict of parameters"),
        (pickle.dumps({"m": {"w": 3}}), "m/w is not an array: expected float32"),
        (pickle.dumps({"m": {"w": np.zeros(2)}}), "m/w is float64: expected float32"),
        (pickle.dumps({"m\n": {"w": np.zeros(2)}}), "a key that is not a name: .* 2 letters"),
        (pickle.dumps({"m" * 300: {"w": np.zeros(2)}}), "a key that is not a name: 'mmmm.*300 letters"),
        (pickle.dumps({3: {"w": np.zeros(2)}}), "key that is a int, expected a string"),
        (pickle.dumps(TREE) + b"x", "1 bytes follow its end"),
        (pickle.dumps(TREE)[:-40], "damaged or truncated"),
        (pickle.dumps(TREE)[:1], "damaged or truncated"),
    ],
)
def test_error_for_other_files_says_what_was_found_and_expected(read, content, message):
    if message is None:
        assert read(content) == {}
    else:
        with pytest.raises(ValueError, match=message) as error:
            read(content)
        assert "F0_haiku.npz" in str(error.value)
        assert "\n" not in str(error.value)


def test_error_for_a_real_npz_says_so(read):
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    assert zipfile.is_zipfile(buffer)
    with pytest.raises(ValueError, match=r"zip archive, perhaps a real \.npz.*numpy\.load.*`nfnet-timm publish`"):
        read(buffer.getvalue())


def test_truncated_file_is_refused(read):
    content = pickle.dumps(TREE, protocol=4)
    for end in range(2, len(content)):
        with pytest.raises(ValueError, match="damaged or truncated"):
            read(content[:end])


# --- hostile files


class Call:
    """An object whose pickle calls ``function``."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def reduce_of(module: str, name: str, *args) -> bytes:
    """Return a pickle of protocol 4 that calls a function, which may not exist."""
    body = b"\x80\x04" + text(module) + text(name) + b"\x93"
    return body + pickle.dumps(args, protocol=3)[2:-1] + b"R."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def array_of(shape, content: bytes, code: str = "f4") -> bytes:
    """Return a pickle of {"m": {"w": array}} whose shape and content may disagree."""
    good = pickle.dumps({"m": {"w": np.zeros(3, np.float32)}}, protocol=3)
    state = pickle.dumps((1, (3,), np.dtype("f4"), False, bytes(12)), protocol=3)[2:-1]
    other = pickle.dumps((1, shape, np.dtype(code), False, content), protocol=3)[2:-1]
    # Each pickle has its own memo, so one state can replace the other.
    start = good.index(b"K\x01K\x03")
    assert len(state) > 0
    return good[: start - 1] + other + b"bsus."


EXEC = "open('PWNED', 'w').write('x')"
HOSTILE = {
    "os.system": pickle.dumps(Call(os.system, "touch PWNED")),
    "os.system in a tree": pickle.dumps({"m": {"w": Call(os.system, "touch PWNED")}}),
    "eval": reduce_of("builtins", "eval", EXEC),
    "getattr": reduce_of("builtins", "getattr", "x", "join"),
    "dotted name": reduce_of("numpy", "os.system", "touch PWNED"),
    "name that resembles dill's": reduce_of("dill._dill", "_create_array_", 1),
    "dill's import": reduce_of("dill._dill", "_import_module", "os"),
    "name with a blank": reduce_of("numpy", "dtype ", "f4"),
    "name with a look-alike letter": reduce_of("numpy", "dtyp\u0435", "f4"),
    "numpy's own loader": reduce_of("numpy", "load", "x"),
    "dict called with a call": reduce_of("builtins", "dict", [("a", 1)]),
    "FlatMapping of no mapping": reduce_of("haiku._src.data_structures", "FlatMapping", "text"),
    "dtype of objects": reduce_of("numpy", "dtype", "O8", False, True),
    "dtype of a structure": reduce_of("numpy", "dtype", [("a", "O")], False, True),
    "dtype that evaluates": reduce_of("numpy", "dtype", EXEC, False, True),
    "an array of objects": pickle.dumps({"m": {"w": np.array([Call(os.system, "touch PWNED")], dtype=object)}}),
    "a call as a state": pickle.dumps({"m": Call(dict, state=Call(os.system, "touch PWNED"))}),
    "persistent id": b"\x80\x04" + text("os.system") + b"Q.",
    "extension registry": b"\x80\x02\x82\x01.",
    "instance": b"\x80\x02(ios\nsystem\n.",
    "object": b"\x80\x02(cos\nsystem\n" + text("touch PWNED") + b"o.",
    "new object": b"\x80\x04" + text("subprocess") + text("Popen") + b"\x93)\x81.",
    "call of a string": b"\x80\x04" + text("os.system") + b"(" + text("touch PWNED") + b"tR.",
    "name put together from numbers": b"\x80\x04K\x01K\x02\x93.",
    "name taken from the memo": b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x94h\x00h\x01\x93)R.",
    "memo that was never set": b"\x80\x04h\x07.",
    "memo at a huge index": b"\x80\x04}r\xff\xff\xff\xffj\xff\xff\xff\x7f.",
    "pop of nothing": b"\x80\x040.",
    "mark that was never set": b"\x80\x04t.",
    "tuple across a mark": b"\x80\x04K\x01(K\x02\x86.",
    "build of a name": b"\x80\x04" + text("numpy") + text("ndarray") + b"\x93}b.",
    "build of a dict": b"\x80\x04}}b.",
    "items of a tuple": b"\x80\x04)(" + text("a") + b"K\x01u.",
    "odd number of items": b"\x80\x04}(" + text("a") + b"u.",
    "terabytes of array": array_of((10**12,), b"x"),
    "negative sizes": array_of((-3, -1), bytes(12)),
    "size that is no number": array_of(("3",), bytes(12)),
    "more sizes than a kernel has": array_of((1,) * 40, bytes(4)),
    "terabytes of bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "exabytes of bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
    "a long of gigabytes": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "a set": pickle.dumps({"m": {1, 2}}, protocol=4),
    "a list that holds itself": b"\x80\x04]\x94h\x00a.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "a deep nest of tuples as a key": b"\x80\x04}(" + b")" + b"\x85" * 100_000 + b"K\x01u.",
    "no end": b"\x80\x04}",
    "two values": b"\x80\x04}}.",
    "an open mark": b"\x80\x04(}.",
}


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def module(name: str) -> bytes:
    """Return the instructions that dill writes for a module, protocol 3."""
    return named("dill._dill", "_import_module") + word(name) + b"\x85R"


def attribute(of: bytes, name: bytes) -> bytes:
    """Return the instructions that dill writes for an attribute."""
    return named("dill._dill", "_get_attr") + of + name + b"\x86R"


def word(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def leaf(value: bytes) -> bytes:
    """Return a pickle of {"m": {"w": value}}."""
    return b"\x80\x03}" + word("m") + b"}" + word("w") + value + b"ss."


MULTIARRAY = module("numpy.core._multiarray_umath")
RECONSTRUCT = attribute(MULTIARRAY, word("_reconstruct"))
EMPTY = named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"  # the arguments of an array, and the call
ARRAY = RECONSTRUCT + EMPTY
# Pickles that misuse dill's _import_module and _get_attr to get anything but NumPy's _reconstruct.
GET_ATTR = {
    "another module": leaf(attribute(module("os"), word("system")) + word("touch PWNED") + b"\x85R"),
    "NumPy itself": leaf(attribute(module("numpy"), word("_reconstruct")) + EMPTY),
    "a module of NumPy beside it": leaf(attribute(module("numpy.core.numeric"), word("_reconstruct")) + EMPTY),
    "builtins": leaf(attribute(module("builtins"), word("eval")) + word(EXEC) + b"\x85R"),
    "dill's own module": leaf(attribute(module("dill._dill"), word("_import_module")) + word("os") + b"\x85R"),
    "another function": leaf(attribute(MULTIARRAY, word("fromfile")) + word("x") + b"\x85R"),
    "a dotted name": leaf(attribute(MULTIARRAY, word("_reconstruct.__globals__")) + EMPTY),
    "a name of bytes": leaf(attribute(MULTIARRAY, b"C\x0c_reconstruct") + EMPTY),
    "a name that is a number": leaf(attribute(MULTIARRAY, b"K\x01") + EMPTY),
    "an attribute of an attribute": leaf(attribute(RECONSTRUCT, word("_reconstruct")) + EMPTY),
    "an attribute of an array": leaf(attribute(ARRAY, word("tofile")) + word("PWNED") + b"\x85R"),
    "an attribute of a name": leaf(attribute(named("numpy", "ndarray"), word("_reconstruct")) + EMPTY),
    "an attribute of the function itself": leaf(attribute(named("dill._dill", "_get_attr"), word("__code__")) + EMPTY),
    "the module as a string": leaf(attribute(word("numpy.core.multiarray"), word("_reconstruct")) + EMPTY),
    "the attribute's name alone": leaf(named("dill._dill", "_get_attr") + word("_reconstruct") + b"\x85R"),
    "three arguments": leaf(named("dill._dill", "_get_attr") + MULTIARRAY + word("_reconstruct") + b"N\x87R" + EMPTY),
    "a module with two arguments": leaf(
        attribute(
            named("dill._dill", "_import_module") + word("numpy.core.multiarray") + b"\x88\x86R", word("_reconstruct")
        )
        + EMPTY
    ),
    "a module of bytes": leaf(named("dill._dill", "_import_module") + b"C\x02os\x85R"),
    "a module of a module": leaf(named("dill._dill", "_import_module") + MULTIARRAY + b"\x85R"),
    "a module left as a value": leaf(MULTIARRAY),
    "a module as the tree": b"\x80\x03" + MULTIARRAY + b".",
    "a module as a key": b"\x80\x03}" + MULTIARRAY + b"}s.",
    "a module that is called": leaf(MULTIARRAY + EMPTY),
    "a module with a state": leaf(MULTIARRAY + b"}b"),
    "the function left as a value": leaf(RECONSTRUCT),
    "the function called with a string": leaf(RECONSTRUCT + word("x") + b"\x85R"),
    "the function called with another type": leaf(RECONSTRUCT + named("builtins", "dict") + b"K\x00\x85C\x01b\x87R"),
    "the function called with another shape": leaf(RECONSTRUCT + named("numpy", "ndarray") + b"K\x07\x85C\x01b\x87R"),
    "the function called with another dtype": leaf(RECONSTRUCT + named("numpy", "ndarray") + b"K\x00\x85C\x01O\x87R"),
    "the names in the memo, called the other way round": leaf(
        named("dill._dill", "_get_attr")
        + b"q\x00"
        + named("dill._dill", "_import_module")
        + b"q\x01h\x00"
        + word("os")
        + b"\x85R"
        + word("system")
        + b"\x86R"
    ),
    "a module in the memo, as an argument": leaf(MULTIARRAY + b"q\x00" + RECONSTRUCT + b"h\x00\x85R"),
    "the function in the memo, as its own argument": leaf(RECONSTRUCT + b"q\x00h\x00\x85R"),
}
HOSTILE |= {f"_get_attr: {name}": content for name, content in GET_ATTR.items()}


def test_unchanged_pieces_of_the_hostile_files_give_a_valid_file(read):
    """So each hostile file is refused because of its change."""
    state = b"(K\x01K\x02\x85" + named("numpy", "dtype") + word("f4") + b"K\x00K\x01\x87R"
    state += b"(K\x03" + word("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89C\x08" + bytes(8) + b"tb"
    golden.assert_same_tree(read(leaf(ARRAY + state)), {"m": {"w": np.zeros(2, np.float32)}})


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_before_anything_runs(read, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"F0_haiku\.npz") as error:
        read(HOSTILE[name])
    assert not (tmp_path / "PWNED").exists()
    assert len(str(error.value)) < 600


def test_arrays_that_share_bytes_are_refused(read):
    # A thousand arrays share one megabyte. Copies of them would take a gigabyte.
    one = pickle.dumps({"m": {f"w{i}": np.zeros(4, np.float32) for i in range(2)}}, protocol=4)
    assert read(one)["m"]["w1"].shape == (4,)
    blob = b"\x80\x04" + b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x00"
    dtype = text("numpy") + text("dtype") + b"\x93" + text("f4") + b"\x89\x88\x87R" + b"q\x01"
    scalar = text("numpy._core.numeric") + text("_frombuffer") + b"\x93q\x02"
    arrays = b"".join(
        text(f"w{i}") + b"h\x02(h\x00h\x01" + b"J" + struct.pack("<i", 1 << 18) + b"\x85" + text("C") + b"tR"
        for i in range(1000)
    )
    # The blob, the dtype and the function stay on the stack in a tuple that is a value of the tree.
    content = blob + dtype + scalar + b"\x87" + b"q\x03}(" + arrays + b"u\x86."
    with pytest.raises(ValueError, match="larger than the file"):
        read(content)


def test_no_module_is_imported_for_a_name(run_python):
    out = run_python(
        "import sys\n"
        "from nfnet_timm.formats.haiku_reader import read_tree\n"
        "for name in ('nfnet_tiny_haiku_2021', 'dill2025_jax_arrays'):\n"
        f"    read_tree({str(golden.DATA)!r} + f'/{{name}}.npz')\n"
        "print([m for m in ('jax', 'haiku', 'dill', 'torch', 'timm') if m in sys.modules])"
    )
    assert out.strip() == "[]"


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_gives_a_tree_or_a_valueerror(read, seed):
    """Flip, insert, delete and duplicate bytes of a valid file. No other type of error may occur."""
    r = random.Random(seed)
    good = (golden.DATA / "dill2025_jax_arrays.npz").read_bytes()
    opcodes = bytes(ord(op.code) for op in pickletools.opcodes)
    for _ in range(500):
        data = bytearray(good)
        for _ in range(r.randint(1, 6)):
            at = r.randrange(2, len(data))
            match r.randrange(5):
                case 0:
                    data[at] = r.randrange(256)
                case 1:
                    data[at:at] = bytes([r.choice(opcodes)])
                case 2:
                    del data[at : at + r.randint(1, 9)]
                case 3:
                    data[at:at] = data[at : at + r.randint(1, 30)]
                case 4:
                    data[at] = r.choice(opcodes)
        try:
            tree = read(bytes(data))
        except ValueError as error:
            assert "F0_haiku.npz" in str(error)
        else:
            assert all(a.dtype == np.float32 for ps in tree.values() for a in ps.values())


@pytest.mark.slow
def test_fuzzed_pickles_give_a_tree_or_a_valueerror_within_limits():
    """See fuzz_reader.py for the limits of memory and time."""
    command = [sys.executable, ROOT / "tests" / "support" / "fuzz_reader.py", "0", "300"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

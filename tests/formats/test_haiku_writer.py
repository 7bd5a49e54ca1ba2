"""pickle reads the written files, whose names every NumPy since 1.18 has.

Checked once by hand, exact to the bit: dill 0.3.3 with NumPy 1.18.5 (Python 3.7), 0.3.3 with 1.19.5 (3.8), 0.3.8 with
1.26.4 (3.10), 0.4.1 with 2.4.6 (3.12), and pickle in each of these environments.
"""

import pickle
import pickletools

import golden
import numpy as np
import pytest

from nfnet_timm.formats.haiku_reader import read_tree
from nfnet_timm.formats.haiku_writer import write_tree

TREE = golden.tree("nfnet_tiny_train")


W = np.arange(6, dtype=np.float32).reshape(2, 3)
TREES = {
    "network": TREE,
    "empty": {},
    "empty module": {"m": {}},
    "empty array": {"m": {"w": np.zeros((0, 3), np.float32)}},
    "orders of memory and bytes": {"m": {"fortran": np.asfortranarray(W), "big": W.astype(">f4"), "part": W[:, ::2]}},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_pickle_and_read_tree_read_the_file_exactly(tmp_path, tree):
    write_tree(tree, tmp_path / "out.npz")
    expected = {m: {p: array.astype("<f4") for p, array in params.items()} for m, params in tree.items()}
    golden.assert_same_tree(pickle.loads((tmp_path / "out.npz").read_bytes()), expected)
    golden.assert_same_tree(read_tree(tmp_path / "out.npz"), expected)


def test_file_has_the_names_and_the_protocol_of_the_authors_versions(tmp_path):
    write_tree(TREE, tmp_path / "out.npz")
    opcodes = [(op.name, arg) for op, arg, _ in pickletools.genops((tmp_path / "out.npz").read_bytes())]
    names = {arg for name, arg in opcodes if name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert opcodes[0] == ("PROTO", 3)
    assert not any(name == "STACK_GLOBAL" for name, _ in opcodes)


def test_array_that_is_not_float32_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"an array of shape \(3,\) is float64: expected float32"):
        write_tree({"m": {"w": np.zeros(3)}}, tmp_path / "out.npz")

"""Writes a small tree of arrays with the dill and the NumPy of the Python that runs this; see make.sh.

    python make.py OUT PROTOCOL FORM ORDER

FORM is what the mappings are, outer and inner: FF, DF, FD or DD (Haiku's FlatMapping, dict). ORDER is that of the
arrays' bytes: plain, fortran or big.
"""

import sys
import zlib

import dill
import numpy as np
from haiku._src.data_structures import FlatMapping  # of make.sh

SHAPES = {
    "NFNet/~/linear": {"b": (3,), "w": (4, 3)},
    "NFNet/~/nf_block": {"skip_gain": ()},
    "NFNet/~/stem_conv0": {"bias": (4,), "gain": (4,), "w": (3, 3, 3, 4)},
}


def parameter(module, name, shape):
    """Return values that tests/formats/test_haiku_reader.py makes again."""
    r = np.random.RandomState(zlib.crc32("{}/{}".format(module, name).encode()))  # noqa: UP032
    return np.asarray(r.randn(*shape), dtype=np.float32)


def main():
    """Write the file."""
    out, protocol, form, order = sys.argv[1:]
    change = {"plain": lambda a: a, "fortran": lambda a: np.array(a, order="F"), "big": lambda a: a.astype(">f4")}[
        order
    ]
    outer, inner = ({"F": FlatMapping, "D": dict}[letter] for letter in form)
    tree = {m: inner({p: change(parameter(m, p, s)) for p, s in params.items()}) for m, params in SHAPES.items()}
    with open(out, "wb") as file:
        dill.dump(outer(tree), file, protocol=int(protocol))


if __name__ == "__main__":
    main()

"""Writes the format of the released ``F*_haiku.npz``, which dill 0.3.3 wrote under Python 3.7 with NumPy 1.18.

It replaces files that the tests do not have. Two facts check it: those versions wrote ``nfnet_tiny_haiku_2021.npz``,
and the released F0 has 285,976,842 bytes.
"""

import pickle

import numpy as np

RELEASED_F0_BYTES = 285_976_842  # of https://storage.googleapis.com/dm-nfnets/F0_haiku.npz


class _FlatMapping(dict):
    pass


# They stand for objects of the old versions. ``_Pickler`` knows how those are written.
_RECONSTRUCT, _MULTIARRAY, _DTYPE = (lambda: None), object(), object()


def write(tree, path):
    """Write ``tree`` as the authors did: FlatMappings of FlatMappings, with modules and parameters sorted by name."""
    with open(path, "wb") as file:
        _Pickler(file, protocol=3).dump(
            _FlatMapping((module, _FlatMapping(sorted(params.items()))) for module, params in sorted(tree.items()))
        )


def _named(module, name):
    return type(name, (), {"__module__": module})


class _Pickler(pickle._Pickler):
    flat_mapping = _named("haiku._src.data_structures", "FlatMapping")
    get_attr, import_module = _named("dill._dill", "_get_attr"), _named("dill._dill", "_import_module")

    def save_global(self, obj, name=None):  # the module of ``obj`` need not exist here
        self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())
        self.memoize(obj)

    def reducer_override(self, obj):
        if isinstance(obj, _FlatMapping):
            return self.flat_mapping, (dict(obj),)
        if isinstance(obj, np.ndarray):
            empty = np.ndarray, np.empty(0).shape, b"b"  # a new tuple for each array, as in NumPy
            return _RECONSTRUCT, empty, (1, obj.shape, _DTYPE, False, np.ascontiguousarray(obj, "<f4").tobytes())
        if obj is _DTYPE:
            return np.dtype, ("f4", 0, 1), (3, "<", None, None, None, -1, -1, 0)
        if obj is _RECONSTRUCT:
            return self.get_attr, (_MULTIARRAY, "_reconstruct")
        if obj is _MULTIARRAY:
            return self.import_module, ("numpy.core._multiarray_umath",)
        return NotImplemented

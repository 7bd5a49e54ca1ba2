"""Writes the mini NFNet of tests/formats/test_orbax_reader.py with the Orbax of the Python that runs this.

    python make.py MINI.npz OUT ocdbt|plain

The archives beside this were made by CPython 3.10 with NumPy 1.26.4 and
    orbax-checkpoint 0.4.8 (December 2023), jax 0.4.23
    orbax-checkpoint 0.5.20 (June 2024), jax 0.4.30
MINI.npz: `numpy.savez` of {"MODULE::NAME": array}, from `mini_tree()` in tests/formats/test_orbax_reader.py.
"""

import os
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


def main():
    """Write the checkpoint."""
    mini, out, form = sys.argv[1:]
    params = {}
    for key, array in np.load(mini).items():
        module, name = key.split("::")
        params.setdefault(module, {})[name] = jnp.asarray(array)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=form == "ocdbt")
    ocp.Checkpointer(handler).save(os.path.abspath(out), {"params": params, "state": {}})


if __name__ == "__main__":
    main()

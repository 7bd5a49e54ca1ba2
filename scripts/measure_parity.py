"""Measures how far this package's logits are from the authors', for each reference value in tests/data.

python scripts/measure_parity.py    writes benchmarks/parity.json, of which docs/fidelity.md is rendered
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from common import parse_nothing, write_text
from torch import nn

from nfnet_timm.formats.haiku_names import from_haiku

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

import golden  # noqa: E402  # the recipe of the parameters, beside the reference values


def error(model: nn.Module, reference: str) -> float:
    """Return the L2 norm of the difference of the logits over that of the authors'."""
    expected = np.load(golden.DATA / f"{reference}.npz")
    with torch.no_grad():
        return golden.relative_error(model(golden.images(expected["input"])), expected["logits"])


def main() -> None:
    """Measure all, and write the figures with two digits."""
    parse_nothing(__doc__)
    found: dict[str, float] = {}
    for path in sorted(golden.DATA.glob("nf*[0-9]x[0-9]*.npz")):
        network = path.stem.rsplit("_", 1)[0]
        model = timm.create_model(golden.NETWORKS[network], device="meta").eval()
        model.load_state_dict(from_haiku(golden.tree(network)))
        found[path.stem] = error(model, path.stem)
        if path.stem == "nfnet_f0_64x64":
            arrays = {k: v[:, None, None, None] if k.endswith(".gain") else v for k, v in model.state_dict().items()}
            timms = timm.create_model("dm_nfnet_f0").eval()
            timms.load_state_dict(arrays)
            found["timm, dm_nfnet_f0_64x64"] = error(timms, path.stem)
        print(path.stem, f"{found[path.stem]:.1e}", flush=True)
    rounded = {name: float(f"{value:.1e}") for name, value in found.items()}
    write_text(ROOT / "benchmarks" / "parity.json", json.dumps(rounded, indent=2) + "\n")


if __name__ == "__main__":
    main()

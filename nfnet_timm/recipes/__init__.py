"""The published hyper-parameters as configuration files for timm's train.py.

``nfnet.yaml`` is the recipe of all NFNets, with a name in place of each value in which they differ.
"""

from __future__ import annotations

from importlib.resources import files
from string import Template

__all__ = ["RECIPES", "recipe"]

# Pixels, images of a process and a step of accumulation, dropout, magnitude of RandAugment.
# Source: deepmind-research/nfnets/base.py; the authors' batch of 4096 is divided to fit GPUs of 40 GB.
_NFNETS = {
    "f0": (192, 128, 0.2, 5),
    "f1": (224, 128, 0.3, 10),
    "f2": (256, 128, 0.4, 10),
    "f3": (320, 64, 0.4, 15),
    "f4": (384, 32, 0.5, 15),
    "f5": (416, 32, 0.5, 15),
    "f6": (448, 16, 0.5, 15),
    "f7": (480, 16, 0.5, 15),
}
_NOTES = {
    "f6": """\
# The published F6 was trained with SAM. Neither code nor radius was released, and train.py cannot run it, so this is
# without SAM. In a loop of your own, use nfnet_timm.optim.SAM: ascend on a fifth of each process's batch, by that
# process alone, and search the radius from 0.05 on, the paper's value for fine-tuning.
""",
    "f7": """\
# No F7 was published; these are the values of the authors' code for it.
""",
}
RECIPES = (*(f"nfnet_{name}" for name in _NFNETS), "nf_resnet", "finetune")


def recipe(name: str) -> str:
    """Return the text of the YAML file for ``train.py --config``.

    Raises:
        ValueError: If ``name`` is not in ``RECIPES``.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe for {name!r}: expected one of {', '.join(RECIPES)}")
    folder = files("nfnet_timm") / "recipes"
    short = name.removeprefix("nfnet_")
    if short not in _NFNETS:
        return (folder / f"{name}.yaml").read_text(encoding="utf-8")
    pixels, batch_size, drop, magnitude = _NFNETS[short]
    aa = f"rand-m{magnitude}-n4-mstd0  # 4 operations of magnitude {magnitude}, which timm varies without mstd0"
    if magnitude > 10:
        aa = f"rand-m{magnitude}-n4-mstd0-mmax{magnitude}  # 4 operations of magnitude {magnitude}; timm caps it at 10 "
        aa += "without mmax, varies it without mstd0"
    return Template((folder / "nfnet.yaml").read_text(encoding="utf-8")).substitute(
        name=short,
        title=short.upper(),
        note=_NOTES.get(short, ""),
        pixels=pixels,
        batch_size=batch_size,
        grad_accum_steps=4096 // 8 // batch_size,
        drop=drop,
        aa=aa,
    )

"""The published hyper-parameters as configuration files for timm's train.py.

``nfnet.yaml`` is the template for all NFNets. It has a placeholder for each value that depends on the network.
"""

from importlib.resources import files
from string import Template

__all__ = ["RECIPES", "recipe"]

# Pixels, images for one process and one step of accumulation, dropout, magnitude of RandAugment.
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
# The published F6 was trained with SAM. Neither its code nor its radius was released, and train.py cannot run SAM, so
# this recipe is without it. In your own training loop, use nfnet_timm.optim.SAM: each process computes its own ascent
# on a fifth of its batch. Search for the radius, beginning at 0.05, the paper's value for fine-tuning.
""",
    "f7": """\
# No F7 was published. These are the values for it in the authors' code.
""",
}
RECIPES = (*(f"nfnet_{name}" for name in _NFNETS), "nf_resnet", "finetune")


def recipe(name: str) -> str:
    """Return the text of the YAML file for ``train.py --config``.

    Raises:
        ValueError: If ``name`` is not in ``RECIPES``.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}: expected one of {', '.join(RECIPES)}")
    folder = files("nfnet_timm") / "recipes"
    short = name.removeprefix("nfnet_")
    if short not in _NFNETS:
        return (folder / f"{name}.yaml").read_text(encoding="utf-8")
    pixels, batch_size, drop, magnitude = _NFNETS[short]
    aa = f"rand-m{magnitude}-n4-mstd0  # 4 operations of magnitude {magnitude}; without mstd0, timm varies it"
    if magnitude > 10:
        aa = f"rand-m{magnitude}-n4-mstd0-mmax{magnitude}  # 4 operations of magnitude {magnitude}; without mmax, timm "
        aa += "caps it at 10, and without mstd0, timm varies it"
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

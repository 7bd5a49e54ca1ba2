"""The configuration of a network, and the table of all networks of the package.

Source: deepmind-research/nfnets/base.py (NFNets, NF-RegNets) and nf_resnet.py (NF-ResNets).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

__all__ = ["VARIANTS", "NormFreeCfg", "UnknownFieldError", "Variant", "checked_count"]


def checked_count(name: str, value: Any, smallest: int) -> int:
    """Return ``value`` as an int. Raise ValueError unless it is a whole number of at least ``smallest``."""
    if not isinstance(value, Integral) or value < smallest:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {smallest}")
    return int(value)


class UnknownFieldError(TypeError, ValueError):
    """A keyword argument that no network here has. It is a TypeError, as in timm, and also a ValueError."""


@dataclass(frozen=True)
class NormFreeCfg:
    """The architecture of a Normalizer-Free network. Every field is also a keyword argument of ``create_model``.

    Args:
        depths: Blocks in each stage.
        channels: Output channels of each stage, before ``width_factor``.
        stem_type: "deep_quad" (four 3 x 3, stride 4), "3x3" (stride 2) or "7x7_pool" (stride 4).
        stem_chs: Channels of the stem's last convolution; None for the family's share of ``channels[0]``.
        group_size: Channels per group of the 3 x 3 convolutions; None for ungrouped. The width inside a block is
            rounded down to a multiple of it.
        bottle_ratio: Ratio of the width inside a block to its output channels (with ``reg``: to its input channels).
        num_features: Channels of the final convolution; 0 for none, None for the family's multiple of the last stage.
        alpha: Scale of the residual branch. Each block adds alpha**2 to the variance (arXiv 2101.08692, section 3).
        reg: Whether blocks are those of NF-RegNets: their width depends on the input channels, and squeeze-excite comes
            before the last convolution.
        extra_conv: Whether blocks have a second 3 x 3 convolution, as in NFNets.
        rd_ratio: Ratio of hidden to outer channels of squeeze-excite; 0 for none.
        act_layer: A key of ``nfnet_timm.layers.ACTIVATIONS``.
        zero_init_fc: Whether the classifier starts at 0 instead of N(0, 0.01).
    """

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    stem_type: str
    stem_chs: int | None = None
    group_size: int | None = None
    width_factor: float = 1.0
    bottle_ratio: float = 0.5
    num_features: int | None = None
    alpha: float = 0.2
    reg: bool = False
    extra_conv: bool = False
    rd_ratio: float = 0.5
    act_layer: str = "gelu_tanh"
    zero_init_fc: bool = False

    def override(self, **kwargs: Any) -> "NormFreeCfg":
        """Return a copy of this configuration with the fields in ``kwargs`` replaced.

        Raises:
            UnknownFieldError: If a keyword is not a field.
            ValueError: If a field has an invalid value.
        """
        names = [f.name for f in fields(self)]
        unknown = sorted(set(kwargs) - set(names))
        if unknown:
            raise UnknownFieldError(
                f"unknown argument {unknown[0]}={kwargs[unknown[0]]!r}: expected an argument of timm (num_classes, "
                f"in_chans, global_pool, output_stride, drop_rate, drop_path_rate), recompute_acts, or a field of "
                f"NormFreeCfg ({', '.join(names)})"
            )
        cfg = replace(self, **kwargs)
        for name in ("depths", "channels"):
            value: Any = getattr(cfg, name)
            if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:  # Hydra's is a Sequence
                raise ValueError(f"{name}={value!r}: expected four whole numbers, one for each stage")
            sizes = tuple(checked_count(f"{name}[{i}]", size, 1) for i, size in enumerate(value))
            cfg = replace(cfg, **{name: sizes})  # type: ignore[arg-type]
        if max(cfg.depths) > MAX_DEPTH:
            raise ValueError(f"depths={cfg.depths}: expected at most {MAX_DEPTH} blocks in a stage")
        if cfg.stem_type not in STEM_SHARE:
            raise ValueError(f"stem_type={cfg.stem_type!r}: expected one of {', '.join(STEM_SHARE)}")
        for name, smallest in (("stem_chs", 1), ("group_size", 0), ("num_features", 0)):
            if (value := getattr(cfg, name)) is not None:
                cfg = replace(cfg, **{name: checked_count(name, value, smallest)})  # type: ignore[arg-type]
        for name in ("width_factor", "bottle_ratio", "rd_ratio", "alpha"):
            value = getattr(cfg, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"{name}={value!r}: expected a finite number of at least 0")
        if min(cfg.out_chs_of_stem, *cfg.stage_chs) < 1:
            raise ValueError(
                f"channels={cfg.channels} with width_factor={cfg.width_factor} give a stage or the stem no channels: "
                "expected at least one channel in each"
            )
        return cfg

    @property
    def stage_chs(self) -> list[int]:
        """Output channels of each stage."""
        return [int(chs * self.width_factor) for chs in self.channels]

    @property
    def out_chs_of_stem(self) -> int:
        """Output channels of the stem."""
        return self.stem_chs or int(self.channels[0] * self.width_factor * STEM_SHARE[self.stem_type])

    @property
    def final_chs(self) -> int:
        """Channels of the final convolution, or 0 if there is none."""
        if self.num_features is not None:
            return self.num_features
        return 1280 * self.stage_chs[-1] // 440 if self.reg else 2 * self.stage_chs[-1]


# Blocks in a stage. The deepest published network has 50; millions, from a hostile config.json, would take hours.
MAX_DEPTH = 1000

# Ratio of the channels of the stem's last convolution to the channels of the first stage.
STEM_SHARE = {"deep_quad": 1 / 2, "3x3": 1.0, "7x7_pool": 1 / 4}


@dataclass(frozen=True)
class Variant:
    """A network with a name, and the image sizes that its authors used.

    Args:
        title: Name in the paper.
        train_size: Height and width of training images, pixels.
        test_size: Height and width of test images, pixels.
        crop_pct: Ratio of the centre crop to the resized image, as in timm.
        crop_mode: "squash" if the authors resize to a square without keeping the aspect ratio, else "center".
        hf_hub_id: Hub repository with weights in timm's format, or None if there is none.
    """

    title: str
    cfg: NormFreeCfg
    train_size: int
    test_size: int
    paper_ids: str
    crop_pct: float = 0.875
    crop_mode: str = "center"
    hf_hub_id: str | None = None


_CHARACTERIZING, _HIGH_PERFORMANCE = "arXiv:2101.08692", "arXiv:2102.06171"

# F-series: train size, test size, and the crop that timm uses with the released weights (none are for F7).
_NFNET_SIZES = (
    (192, 256, 0.9),
    (224, 320, 0.91),
    (256, 352, 0.92),
    (320, 416, 0.94),
    (384, 512, 0.951),
    (416, 544, 0.954),
    (448, 576, 0.956),
    (480, 608, 0.95),
)
_NFRESNET_DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    288: (24, 24, 24, 24),
    600: (50, 50, 50, 50),
}
# B-series: channels before the width factor of 0.75, depths, train size, test size.
_NFREGNETS = (
    ((48, 104, 208, 440), (1, 3, 6, 6), 192, 224),
    ((48, 104, 208, 440), (2, 4, 7, 7), 224, 256),
    ((56, 112, 232, 488), (2, 4, 8, 8), 240, 272),
    ((56, 128, 248, 528), (2, 5, 9, 9), 288, 320),
    ((64, 144, 288, 616), (2, 6, 11, 11), 320, 384),
    ((80, 168, 336, 704), (3, 7, 14, 14), 384, 456),
    ((88, 184, 376, 792), (3, 8, 16, 16), 448, 528),
    ((96, 208, 416, 880), (4, 10, 19, 19), 512, 600),
    ((104, 232, 456, 968), (4, 11, 22, 22), 600, 672),
)


def _variants() -> dict[str, Variant]:
    out = {}
    for i, (train, test, crop_pct) in enumerate(_NFNET_SIZES):
        cfg = NormFreeCfg(
            depths=(i + 1, 2 * i + 2, 6 * i + 6, 3 * i + 3),
            channels=(256, 512, 1536, 1536),
            stem_type="deep_quad",
            group_size=128,
            extra_conv=True,
        )
        nfnet = Variant(f"NFNet-F{i}", cfg, train, test, _HIGH_PERFORMANCE, crop_pct, "squash")
        hub = f"timm/dm_nfnet_f{i}.dm_in1k" if i < 7 else None
        out[f"nfnet_f{i}"] = replace(nfnet, hf_hub_id=hub)
        wide = replace(cfg, channels=(384, 768, 2048, 2048))
        out[f"nfnet_f{i}_plus"] = replace(nfnet, title=f"NFNet-F{i}+", cfg=wide)
    for se in (False, True):
        for depth, depths in _NFRESNET_DEPTHS.items():
            cfg = NormFreeCfg(
                depths=depths,
                channels=(256, 512, 1024, 2048),
                stem_type="7x7_pool",
                bottle_ratio=0.25,
                num_features=0,
                rd_ratio=0.25 if se else 0.0,
                act_layer="relu",
            )
            title = f"{'SE-' if se else ''}NF-ResNet-{depth}"
            out[f"dm_nf_{'se' if se else ''}resnet{depth}"] = Variant(title, cfg, 224, 224, _CHARACTERIZING)
    for i, (channels, depths, train, test) in enumerate(_NFREGNETS):
        cfg = NormFreeCfg(
            depths=depths,
            channels=channels,
            stem_type="3x3",
            group_size=8,
            width_factor=0.75,
            bottle_ratio=2.25,
            reg=True,
            act_layer="silu",
            zero_init_fc=True,
        )
        out[f"dm_nf_regnet_b{i}"] = Variant(f"NF-RegNet-B{i}", cfg, train, test, _CHARACTERIZING)
    return out


VARIANTS: dict[str, Variant] = _variants()

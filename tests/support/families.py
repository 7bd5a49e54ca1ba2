"""Small networks of each family, and of the options that change feature maps, for tests of compilers and exporters."""

from golden import TINY

__all__ = ["families"]


def families(**shape):
    """Return the name and the arguments of each network; ``shape`` replaces arguments of all of them."""
    small = {**TINY, "depths": (1, 1, 1, 1), **shape}
    without_head = {key: value for key, value in small.items() if key != "num_classes"}
    return {
        "NFNet": ("nfnet_f0", small),
        "NF-ResNet": ("dm_nf_resnet50", {**small, "group_size": None}),
        "NF-RegNet": ("dm_nf_regnet_b0", {**small, "width_factor": 1.0}),
        "output_stride": ("nfnet_f0", {**small, "output_stride": 16}),
        "features_only": ("nfnet_f0", {**without_head, "features_only": True}),
    }

"""Small networks of each family, and of the options that change feature maps, for tests of compilers and exporters."""

import timm
from golden import TINY
from torch import nn

__all__ = ["as_trained", "families"]


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


def as_trained(name, **kwargs):
    """Build a network in eval mode with random gains, biases and classifier, which have equal values at first."""
    model = timm.create_model(name, **kwargs).eval()
    for key, p in model.named_parameters():
        if key.endswith(("gain", "bias")):
            nn.init.uniform_(p, 0.5, 1.5)
        elif key.endswith("fc.weight"):  # in NF-RegNets it is 0, and the logits would not depend on the input
            nn.init.normal_(p, std=0.1)
    return model

"""The same network with batch norm, to study the effect of normalization."""

from typing import Any

import torch
from torch import nn

from nfnet_timm.layers.same_padding import Conv2dSame
from nfnet_timm.layers.ws_conv import WSConv2d
from nfnet_timm.models.block import NormFreeBlock

__all__ = ["with_batch_norm"]


def with_batch_norm(model: nn.Module) -> nn.Module:
    """Change the networks in ``model`` to batch norm, and return ``model``.

    Replaced:

    - each ``WSConv2d`` (standardized weight, gain, bias, and the factors beta and gamma in its weight) by a plain
      convolution without bias and a ``BatchNorm2d``, in an ``nn.Sequential``;
    - alpha, the scale of the residual branch, by 1;
    - the skip gain by 1, which is not trained; the weight of the last batch norm of each branch starts at 0, as the
      skip gain did.

    Not changed: depths and widths, SAME padding, pooling, squeeze-excite with its factor 2, activations, gamma after
    the last activation, stochastic depth, classifier. New weights are drawn from N(0, 2 / fan_in), so call this before
    training. The state dict has other names, so the original network does not load it, and it cannot be published.

    Raises:
        ValueError: If ``model`` is no module with a ``WSConv2d`` inside, for example after ``reparameterize()``.
    """
    parents = list(model.modules()) if isinstance(model, nn.Module) else []
    children = [(parent, *child) for parent in parents for child in parent.named_children()]
    convs = [(parent, name, conv) for parent, name, conv in children if isinstance(conv, WSConv2d)]
    if not convs:
        raise ValueError(
            f"model is {type(model).__name__}, with no WSConv2d inside: expected a network of nfnet_timm, or a module "
            "that contains one, without reparameterize() or batch norm. Put a single WSConv2d into an nn.Sequential"
        )
    for parent, name, conv in convs:
        is_last = isinstance(parent, NormFreeBlock) and name == "conv3"
        setattr(parent, name, _normalized(conv, _ZeroBatchNorm2d if is_last else nn.BatchNorm2d))
    for block in parents:
        if isinstance(block, NormFreeBlock):
            block.alpha = block.initial_skip_gain = 1.0
            block.skipinit_gain.requires_grad_(False)
            block.reset_parameters()
    return model


class _Conv2d(Conv2dSame):
    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")


class _ZeroBatchNorm2d(nn.BatchNorm2d):
    """The last norm of a branch: its weight starts at 0."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


def _normalized(conv: Any, norm: type[nn.BatchNorm2d]) -> nn.Sequential:
    dd: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    geometry = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, "same", conv.dilation, conv.groups)
    plain = _Conv2d(*geometry, bias=False, padding_mode=conv.padding_mode, **dd)
    if not conv.weight.is_contiguous():
        plain.to(memory_format=torch.channels_last)
    return nn.Sequential(plain, norm(conv.out_channels, **dd)).train(conv.training)

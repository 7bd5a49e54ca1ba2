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
        ValueError: If ``model`` contains no ``WSConv2d``, for example after ``reparameterize()``.
    """
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, NormFreeBlock)]
    found = False
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, WSConv2d):
                is_last = isinstance(parent, NormFreeBlock) and name == "conv3"
                setattr(parent, name, _normalized(conv, _ZeroBatchNorm2d if is_last else nn.BatchNorm2d))
                found = True
    if not found:
        raise ValueError(
            f"{type(model).__name__} contains no WSConv2d: expected a network of nfnet_timm that has not been "
            "reparameterized and has no batch norm"
        )
    for block in blocks:
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

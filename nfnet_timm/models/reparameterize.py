"""Remove weight standardization for inference, from the networks of this package and from timm's own."""

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame
from timm.utils import reparameterize_model
from torch import nn

from nfnet_timm.layers.ws_conv import plain_conv

__all__ = ["reparameterize"]


def reparameterize(model: nn.Module) -> nn.Module:
    """Replace each scaled-standardized convolution by a plain one with its present weight, and return the model.

    Outputs stay within float32 rounding. The state dict then has no gains. ``model`` may be a network of this package
    or of timm (``eca_nfnet_l0``, ``nf_resnet50``, ``dm_nfnet_f0`` and so on), or contain one.

    Raises:
        ValueError: If ``model`` is not a module, or is scripted.
    Differs from timm: ``timm.utils.reparameterize_model`` does not change timm's own convolutions.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"model is {type(model).__name__}: expected a torch.nn.Module that is not scripted")
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, (ScaledStdConv2d, ScaledStdConv2dSame)):
                setattr(parent, name, _plain(module))
    if isinstance(model, (ScaledStdConv2d, ScaledStdConv2dSame)):
        return _plain(model)
    return reparameterize_model(model, inplace=True)


@torch.no_grad()
def _plain(module: ScaledStdConv2d | ScaledStdConv2dSame) -> nn.Conv2d:
    # The weight that timm's module uses in forward. Source: timm/layers/std_conv.py.
    rows, gain = module.weight.reshape(1, module.out_channels, -1), (module.gain * module.scale).view(-1)
    out = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=module.eps)
    layout = torch.contiguous_format if module.weight.is_contiguous() else torch.channels_last
    weight = out.reshape_as(module.weight).contiguous(memory_format=layout)
    same = getattr(module, "same_pad", False)  # padding that depends on the size of the image
    return plain_conv(module, Conv2dSame if same else nn.Conv2d, module.padding, weight)

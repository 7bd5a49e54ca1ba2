"""Per-sample gradients and their norms, for differential privacy with Opacus.

Importing this module registers them with Opacus. ``GradSampleModule`` and ``PrivacyEngine.make_private`` then accept a
network of this package like any other model. Without it, Opacus runs a vectorized backward pass for each block.

The standardized weight is the same for all samples, so one linear map gives the gradients of every sample. For one row
of weights::

    u = (row - mean(row)) * rsqrt(max(var * fan_in, eps))  # the standardized row, with scale 1 and gain 1
    a = scale * gain * rsqrt(max(var * fan_in, eps))
    q = a sample's gradient of the row that the convolution uses
    grad_row = a * (q - mean(q) - u * <q, u>)  # in a clamped row: a * (q - mean(q))
    grad_gain = scale * <q, u>

Raises:
    ImportError: If Opacus is not installed; the extra ``privacy`` installs it.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from nfnet_timm.compat.torch import is_checkpointing
from nfnet_timm.installation import to_install
from nfnet_timm.layers.same_padding import Conv2dSame
from nfnet_timm.layers.squeeze_excite import PixelConv2d
from nfnet_timm.layers.ws_conv import WSConv2d
from nfnet_timm.models.block import NormFreeBlock

try:
    from opacus.grad_sample import register_grad_sampler, register_norm_sampler
    from opacus.grad_sample.linear import compute_linear_grad_sample, compute_linear_norm_sample
except ImportError as error:
    raise ImportError(f"nfnet_timm.privacy needs Opacus ({error}): {to_install('privacy')}") from error

__all__: list[str] = []

Grads = dict[Tensor, Tensor]

# Numbers that fit into the cache of a core: 4 MiB of float32.
_CACHED = 2**20
# Numbers that the norms of one layer may use as working memory: 16 MiB of float32, or more if one sample needs more.
# With ghost clipping this memory then does not grow with the batch.
_ROOM = 2**22


@register_grad_sampler([Conv2dSame, WSConv2d])
def conv_grads(layer: Conv2dSame, inputs: list[Tensor], grad: Tensor) -> Grads:
    """Return each sample's gradient of each parameter that is trained: (N, ...)."""
    grads: Grads = {}
    if layer.bias is not None and layer.bias.requires_grad:
        grads[layer.bias] = grad.sum((2, 3))
    rows = _Rows(layer, grad.dtype) if isinstance(layer, WSConv2d) else None
    if not any(p.requires_grad for p in layer.parameters(recurse=False) if p is not layer.bias):
        return grads
    patches, pixels = _patches(layer, inputs[0].to(grad.dtype)), grad.flatten(2).unflatten(1, (layer.groups, -1))
    if rows is not None:
        patches = patches - patches.mean(2, keepdim=True)  # this removes the mean of each row from the gradients
    out = grad.new_empty(len(grad), layer.groups, layer.out_channels // layer.groups, layer.weight[0].numel())
    along = grad.new_empty(len(grad), layer.out_channels)
    # On a CPU, a few samples at a time: their gradients stay in the cache from one operation to the next.
    step = max(_CACHED // layer.weight.numel(), 1) if grad.device.type == "cpu" else len(grad)
    for part in (slice(i, i + step) for i in range(0, len(grad), step)):
        torch.matmul(pixels[part], patches[part].mT, out=out[part])
        if rows is not None:
            along[part] = rows.map_(out[part].flatten(1, 2))
    if layer.weight.requires_grad:
        grads[layer.weight] = out.view(len(grad), *layer.weight.shape)
    if isinstance(layer, WSConv2d) and layer.gain.requires_grad:
        grads[layer.gain] = along * layer.scale
    return grads


@register_norm_sampler([Conv2dSame, WSConv2d])
def conv_norms(layer: Conv2dSame, inputs: list[Tensor], grad: Tensor) -> Grads:
    """Return the norm of each sample's gradient of each parameter that is trained: (N,)."""
    each = layer.weight.numel() + layer.weight[0].numel() * layer.groups * grad[:1, 0].numel()
    norms: dict[Tensor, list[Tensor]] = {p: [] for p in layer.parameters(recurse=False) if p.requires_grad}
    for x, g in zip(*(t.split(max(_ROOM // each, 1)) for t in (inputs[0], grad)), strict=True):
        for p, grads in conv_grads(layer, [x], g).items():
            norms[p].append(grads.flatten(1).norm(dim=1))
    return {p: torch.cat(parts) for p, parts in norms.items()}


@register_grad_sampler(PixelConv2d)
def pixel_conv_grads(layer: PixelConv2d, inputs: list[Tensor], grad: Tensor) -> Grads:
    """Return each sample's gradient of each parameter that is trained: (N, ...)."""
    grads = compute_linear_grad_sample(layer, [inputs[0].flatten(1)], grad.flatten(1))
    return {p: each.view(len(grad), *p.shape) for p, each in grads.items()}


@register_norm_sampler(PixelConv2d)
def pixel_conv_norms(layer: PixelConv2d, inputs: list[Tensor], grad: Tensor) -> Grads:
    """Return the norm of each sample's gradient of each parameter that is trained: (N,)."""
    return compute_linear_norm_sample(layer, [inputs[0].flatten(1)], grad.flatten(1))


# For each block, the residual branch and the gate of each forward pass. The gradient of the skip gain needs both.
# Opacus keeps the inputs of a block in the list ``block.activations``. A forward pass appends to it, and a backward
# pass pops the last one. The key here is the index in this list. Example with two passes of each kind:
#     forward: key 0, then key 1; backward: key 1, then key 0
_branches: WeakKeyDictionary[NormFreeBlock, dict[int, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def _keep_branch(block: NormFreeBlock, out: Tensor, gate: Tensor) -> None:
    if not any(hasattr(p, "grad_sample") for p in block.parameters()):  # not wrapped by Opacus
        return
    if is_checkpointing():
        raise ValueError(
            "activation checkpointing runs each block twice, and Opacus counts both passes. Use reentrant "
            "checkpointing (timm.layers.set_reentrant_ckpt()), in which Opacus counts one, or switch checkpointing off "
            "by set_grad_checkpointing(False)"
        )
    if not (block.training and block.skipinit_gain.requires_grad and torch.is_grad_enabled()):
        return
    if hasattr(block, "ft_compute_sample_grad"):
        raise ValueError(
            'grad_sample_mode="functorch" would count the layers inside a block twice, because nfnet_timm.privacy has '
            'samplers for them: expected "hooks" or "ghost", which are faster'
        )
    place = len(getattr(block, "activations", []))  # Opacus will append this pass's input here
    _branches.setdefault(block, {})[place] = out.detach(), gate.detach()

    def forget_input(*_: Any) -> None:  # frees the block's input, which Opacus keeps and nothing else needs
        handle.remove()
        kept: Any = getattr(block, "activations", [])
        if len(kept) > place:
            kept[place] = [out.new_empty(len(out), 0)]  # Opacus reads only the number of samples

    handle = block.register_forward_hook(forget_input)  # runs after Opacus's


NormFreeBlock.residual_hook = staticmethod(_keep_branch)


@register_grad_sampler(NormFreeBlock)
def block_grads(block: NormFreeBlock, inputs: list[Tensor], grad: Tensor) -> Grads:
    """Return each sample's gradient of the skip gain: (N, ...)."""
    out, gate = _branches[block].pop(len(block.activations))  # type: ignore[arg-type]
    by_channel = torch.einsum("nchw,nchw->nc", grad, out.to(grad.dtype))
    gain = block.skipinit_gain
    grads = {gain: (by_channel * gate.flatten(1)).sum(1).view(-1, *gain.shape)}
    # Opacus also counts the parameters of the layers inside as the block's own. If the block is the last module that
    # counts a parameter, Opacus reads the parameter's gradient. With ghost clipping only the norm of this gradient is
    # known. A gradient of one number, the norm, has the same norm.
    inside: list[Any] = [p for p in block.parameters() if p.requires_grad and p is not gain]
    complete = [p for p in inside if p._forward_counter == 1 and not hasattr(p, "_current_grad_sample")]
    return grads | {p: p._norm_sample.unsqueeze(1) for p in complete}


class _Rows:
    """The linear map from gradients of standardized rows, after removal of their mean, to gradients of the rows."""

    def __init__(self, layer: Any, dtype: torch.dtype):
        rows = layer.weight.detach().flatten(1).to(dtype)
        centred = rows - rows.mean(1, keepdim=True)
        var_fan_in = centred.square().sum(1)
        r = var_fan_in.clamp(min=layer.eps).rsqrt()
        self.u = centred * r.unsqueeze(1)
        self.a = layer.scale * layer.gain.detach().to(dtype) * r
        self.is_free = var_fan_in >= layer.eps  # False in clamped rows

    def map_(self, grad: Tensor) -> Tensor:
        """Map ``grad`` (N, O, fan_in) in place, and return ``<grad, u>`` from before the change: (N, O)."""
        along = torch.linalg.vecdot(grad, self.u)
        grad.addcmul_((along * self.is_free).unsqueeze(-1), self.u, value=-1).mul_(self.a.unsqueeze(-1))
        return along


def _patches(layer: Conv2dSame, x: Tensor) -> Tensor:
    """Return the input values for each output pixel: (N, groups, fan_in, pixels)."""
    x, padding = layer.padded(x)
    if layer.kernel_size == (1, 1):
        x = x[:, :, :: layer.stride[0], :: layer.stride[1]]
    else:
        x = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    return x.flatten(2).unflatten(1, (layer.groups, layer.weight[0].numel()))

"""Weight standardization: the formula as published, and the same in fused passes over the weight.

Source: arXiv 2101.08692, section 4.2; ``WSConv2D`` in deepmind-research/nfnets/base.py.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["standardize"]


def standardize(weight: Tensor, gain: Tensor, eps: float = 1e-4) -> Tensor:
    """Return ``gain * (W - mean) * rsqrt(max(var * fan_in, eps))`` over the fan-in of each output channel.

    The eager path reads and writes the weight once forward and once backward; compiled, scripted or traced it is
    the formula, for the compiler to fuse. Both have all derivatives, forward mode and ``torch.func`` included.

    Args:
        weight: (O, ...), float32 or float64; the result has its shape.
        gain: (O,), constant factors included.
        eps: Lower bound of ``var * fan_in``; below it the result is linear in the weight.
    """
    if not torch.jit.is_scripting():  # TorchScript does not read what is under this
        eager = not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        if eager:
            return _Standardize.apply(weight, gain, eps)[0]
    return formula(weight, gain, eps)


def formula(weight: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Return what ``standardize`` guarantees, by the formula as it stands in the paper."""
    rows = weight.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    var_fan_in = centred.square().sum(1)
    return (centred * (gain * torch.rsqrt(var_fan_in.clamp(min=eps))).unsqueeze(1)).view_as(weight)


class _Standardize(torch.autograd.Function):
    """Group normalization with one channel per group is standardization without ``max``: the kernels are torch's.

    Rows that ``max`` holds, which hardly ever are any, are seen to afterwards.
    """

    @staticmethod
    def forward(weight: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, ...]:
        chs, fan_in = len(weight), weight[0].numel()
        # The kernel adds this to the variance: nothing beside eps / fan_in, and enough for a row without variance.
        tiny = 1e-8 * eps / fan_in
        out, mean, rstd = torch.native_group_norm(
            weight.reshape(1, chs, fan_in), gain * fan_in**-0.5, None, 1, chs, fan_in, chs, tiny
        )
        held = _held(rstd, (fan_in / eps) ** 0.5)
        if held is not None:
            linear = (weight.flatten(1) - mean.mT) * (gain * eps**-0.5).unsqueeze(1)
            out = torch.where(held.mT, linear, out.view(chs, fan_in))
        return out.view(weight.shape), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        weight, gain, ctx.eps = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(weight, gain, mean, rstd)
        ctx.save_for_forward(weight, gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, Tensor, None]:
        weight, gain, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # derivatives of this are wanted, which the kernel below lacks
            pull_back = torch.func.vjp(partial(formula, eps=ctx.eps), weight, gain)[1]
            return (*pull_back(grad), None)
        chs, fan_in = len(weight), weight[0].numel()
        grad_weight, along, _ = torch.ops.aten.native_group_norm_backward(
            grad.reshape(1, chs, fan_in),
            weight.reshape(1, chs, fan_in),
            mean,
            rstd,
            gain * fan_in**-0.5,
            1,
            chs,
            fan_in,
            chs,
            [True, True, False],
        )
        grad_gain = along * fan_in**-0.5
        held = _held(rstd, (fan_in / ctx.eps) ** 0.5)
        if held is not None:
            grad, centred = grad.reshape(chs, fan_in), weight.flatten(1) - mean.mT
            linear = (grad - grad.mean(1, keepdim=True)) * (gain * ctx.eps**-0.5).unsqueeze(1)
            grad_weight = torch.where(held.mT, linear, grad_weight.view(chs, fan_in))
            grad_gain = torch.where(held[0], (grad * centred).sum(1) * ctx.eps**-0.5, grad_gain)
        return grad_weight.view(weight.shape), grad_gain, None

    @staticmethod
    def jvp(ctx: Any, weight_t: Tensor, gain_t: Tensor, _: None) -> tuple[Tensor, None, None]:
        weight, gain = ctx.saved_tensors
        rows, rows_t = weight.flatten(1), weight_t.flatten(1)
        centred, centred_t = rows - rows.mean(1, keepdim=True), rows_t - rows_t.mean(1, keepdim=True)
        var_fan_in = centred.square().sum(1)
        scale = torch.rsqrt(var_fan_in.clamp(min=ctx.eps))
        along = torch.where(var_fan_in < ctx.eps, 0.0, scale.square() * (centred * centred_t).sum(1))
        tangent = (gain_t - gain * along).unsqueeze(1) * centred + gain.unsqueeze(1) * centred_t
        return (tangent * scale.unsqueeze(1)).view_as(weight), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], weight: Tensor, gain: Tensor, eps: float) -> tuple[Any, Any]:
        # Rows know nothing of one another: a batch of weights is one weight of more rows.
        def batched(x: Tensor, dim: int | None) -> Tensor:
            return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

        weight, gain = batched(weight, in_dims[0]), batched(gain, in_dims[1])
        outputs = _Standardize.apply(weight.flatten(0, 1), gain.flatten(), eps)
        out, *moments = outputs
        moments = [x.view(info.batch_size, 1, -1) for x in moments]
        return (out.unflatten(0, weight.shape[:2]), *moments), (0, 0, 0)


def _held(rstd: Tensor, limit: float) -> Tensor | None:
    """Return (1, O), which rows ``max`` holds, or None if none is. To know that, a GPU would have to be waited for."""
    if rstd.device.type == "cpu" and not float(rstd.max()) > limit:
        return None
    return rstd > limit

"""The residual block of all Normalizer-Free networks, and the stems before it.

Source: deepmind-research/nfnets/nfnet.py, nf_resnet.py and nf_regnet.py.
"""

from collections import OrderedDict
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nfnet_timm.layers.activations import activation
from nfnet_timm.layers.same_padding import AvgPool2dSame, MaxPool2dSame
from nfnet_timm.layers.squeeze_excite import SqueezeExcite
from nfnet_timm.layers.ws_conv import WSConv2d
from nfnet_timm.models.variants import NormFreeCfg

__all__ = ["NormFreeBlock", "create_stem"]


class NormFreeBlock(nn.Module):
    """Pre-activation residual block ``x + alpha * skip_gain * f(beta * x)`` that preserves variance without norms.

    gamma and beta are factors in the standardized weights. The 2 of squeeze-excite, alpha, the skip gain and the drop
    mask are factors in the gate (N, C, 1, 1). So the block ends in one fused multiply-add over the feature map.

    Args:
        in_chs: Input channels; forward takes (N, in_chs, H, W).
        out_chs: Output channels; forward returns (N, out_chs, ceil(H / stride), ceil(W / stride)).
        beta: 1 / expected standard deviation of the input at initialisation.
        avg_down: Whether the shortcut pools before its 1 x 1 convolution. If False, that convolution has the stride
            (NF-ResNets).
        drop_path_rate: Probability of dropping the residual branch of a sample. The other samples are not rescaled.
    Raises:
        ValueError: If no channel, or no group of ``group_size`` channels, fits into the width of the block.
    Source: ``NFBlock`` in deepmind-research/nfnets/nfnet.py and nf_regnet.py, ``NFResBlock`` in nf_resnet.py.
    Differs from timm: timm's stochastic depth rescales the samples that it keeps. timm multiplies feature maps by
        alpha, beta and gamma.
    """

    # nfnet_timm.privacy sets this function (block, out, gate), for the gradients of the skip gain. Every block calls it
    # in forward. out (N, C, H, W) is the output of the residual branch, gate (N, C or 1, 1, 1) its factor.
    residual_hook: ClassVar[Any] = None

    initial_skip_gain = 0.0  # 1 in a network that with_batch_norm has changed

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int = 1,
        alpha: float = 0.2,
        beta: float = 1.0,
        bottle_ratio: float = 0.5,
        group_size: int | None = None,
        reg: bool = False,
        extra_conv: bool = False,
        avg_down: bool = True,
        rd_ratio: float = 0.5,
        act_layer: str = "gelu_tanh",
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        # Imported here because of the second rule in nfnet_timm/__init__.py.
        from timm.layers import DropPath

        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        mid_chs = int((in_chs if reg else out_chs) * bottle_ratio)
        groups = mid_chs // group_size if group_size else 1
        if group_size:
            mid_chs = groups * group_size
        if mid_chs < 1:
            raise ValueError(
                f"bottle_ratio={bottle_ratio} and group_size={group_size} leave no channels inside a block from "
                f"{in_chs} to {out_chs} channels: expected a larger bottle_ratio, a smaller group_size or more channels"
            )
        self.alpha = alpha

        self.act1, gamma = activation(act_layer)
        self.downsample: nn.Module | None = None
        if stride > 1 or in_chs != out_chs or dilation != first_dilation:
            pool: nn.Module = nn.Identity()
            if avg_down and (stride > 1 or dilation > 1):
                pool = AvgPool2dSame(stride)
            conv = WSConv2d(in_chs, out_chs, 1, 1 if avg_down else stride, scale=gamma * beta, **dd)
            self.downsample = nn.Sequential(OrderedDict(pool=pool, conv=conv))
        self.conv1 = WSConv2d(in_chs, mid_chs, 1, scale=gamma * beta, **dd)
        self.act2, _ = activation(act_layer)
        conv3x3 = partial(WSConv2d, mid_chs, mid_chs, 3, groups=groups, scale=gamma, **dd)
        self.conv2 = conv3x3(stride=stride, dilation=first_dilation)
        self.act2b = activation(act_layer)[0] if extra_conv else None
        self.conv2b = conv3x3(dilation=dilation) if extra_conv else None
        self.attn = SqueezeExcite(mid_chs, rd_ratio, **dd) if reg and rd_ratio else None
        self.act3, _ = activation(act_layer)
        self.conv3 = WSConv2d(mid_chs, out_chs, 1, scale=gamma, **dd)
        self.attn_last = SqueezeExcite(out_chs, rd_ratio, **dd) if not reg and rd_ratio else None
        self.skipinit_gain = nn.Parameter(torch.empty((), **dd))
        self.drop_path = DropPath(drop_path_rate, scale_by_keep=False) if drop_path_rate else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the skip gain to its initial value, 0. The output of the block is then the output of its shortcut."""
        nn.init.constant_(self.skipinit_gain, self.initial_skip_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.act1(x)
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(out)
        # One assignment for each step: in inference, each feature map is then freed as early as possible.
        out = self.conv1(out)
        out = self.act2(out)
        out = self.conv2(out)
        if self.conv2b is not None and self.act2b is not None:
            out = self.act2b(out)
            out = self.conv2b(out)
        if self.attn is not None:
            out = out * self.attn(out)
        out = self.act3(out)
        out = self.conv3(out)
        gate = self.gate(out)
        if not torch.jit.is_scripting():  # noqa: SIM102  # TorchScript would compile the second part of an `and`
            if self.residual_hook is not None:
                self.residual_hook(self, out, gate)
        return torch.addcmul(shortcut, out, (self.skipinit_gain * gate).to(out.dtype))

    def gate(self, out: Tensor) -> Tensor:
        """Return all factors of the residual branch except the skip gain: (N, C or 1, 1, 1)."""
        if self.attn_last is not None:
            gate = self.attn_last(out) * self.alpha
        else:
            gate = out.new_full((out.shape[0], 1, 1, 1), self.alpha, dtype=self.skipinit_gain.dtype)
        return self.drop_path(gate)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        gain = state_dict.get(prefix + "skipinit_gain")
        if gain is not None and gain.numel() == 1:  # (), or (1,) after vectorize_skip_gains()
            own: Any = self.skipinit_gain
            gain = gain.reshape(own.shape)
            # torch's set_model_state_dict shards the arrays of one process for FSDP2, but not its scalars.
            if hasattr(own, "placements") and not hasattr(gain, "placements"):
                from torch.distributed.tensor import distribute_tensor  # here: some builds of torch lack it

                gain = distribute_tensor(gain, own.device_mesh, own.placements)
            state_dict[prefix + "skipinit_gain"] = gain
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def create_stem(cfg: NormFreeCfg, in_chans: int, **dd: Any) -> tuple[nn.Sequential, int, dict[str, Any]]:
    """Return the stem, its stride, and the entry of ``feature_info`` for its feature map at half resolution."""
    stem = nn.Sequential()
    out_chs = cfg.out_chs_of_stem
    if cfg.stem_type == "deep_quad":
        scale = 1.0
        for i, (chs, stride) in enumerate(zip((16, 32, 64, out_chs), (2, 1, 1, 2), strict=True), start=1):
            stem.add_module(f"conv{i}", WSConv2d(in_chans, chs, 3, stride, scale=scale, **dd))
            in_chans = chs
            if i < 4:
                act, scale = activation(cfg.act_layer)
                stem.add_module(f"act{i + 1}", act)
        return stem, 4, {"num_chs": 64, "reduction": 2, "module": "stem.conv3"}
    stem.add_module("conv", WSConv2d(in_chans, out_chs, 7 if cfg.stem_type == "7x7_pool" else 3, 2, **dd))
    if cfg.stem_type == "7x7_pool":
        stem.add_module("pool", MaxPool2dSame(3, 2))
    return stem, 2 * len(stem), {"num_chs": out_chs, "reduction": 2, "module": "stem.conv"}

"""The parts of a Normalizer-Free network: weight standardization, activation gammas, squeeze-excite.

Source: deepmind-research/nfnets/base.py. Everything that scales a whole feature map by a constant in the
authors' code (gamma, beta) is folded into the weight of the convolution that reads it: the same product, computed
on the smaller tensor.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfnet_timm.gelu import GELUTanh
from nfnet_timm.same import Conv2dSame
from nfnet_timm.standardize import standardize

__all__ = [
    "ACTIVATIONS",
    "KEPT_BY_INPUT",
    "Classifier",
    "GlobalMean",
    "ScaledAct",
    "SqueezeExcite",
    "WSConv2d",
    "activation",
]

# Each activation with its gamma, 1 / std(act(z)) for z ~ N(0, 1) (arXiv 2101.08692, section 4.3). The numbers are
# those of deepmind-research/nfnets/base.py, the names timm's. The authors' "gelu" is JAX's, the tanh form: here
# "gelu_tanh"; "gelu" is the erf form, as everywhere in timm, with the same gamma.
ACTIVATIONS: dict[str, tuple[type[nn.Module], dict[str, object], float]] = {
    "identity": (nn.Identity, {}, 1.0),
    "celu": (nn.CELU, {}, 1.270926833152771),
    "elu": (nn.ELU, {}, 1.2716004848480225),
    "gelu": (nn.GELU, {}, 1.7015043497085571),
    "gelu_tanh": (GELUTanh, {}, 1.7015043497085571),
    "leaky_relu": (nn.LeakyReLU, {}, 1.70590341091156),
    "log_sigmoid": (nn.LogSigmoid, {}, 1.9193484783172607),
    "log_softmax": (nn.LogSoftmax, {"dim": 1}, 1.0002083778381348),
    "relu": (nn.ReLU, {}, 1.7139588594436646),
    "relu6": (nn.ReLU6, {}, 1.7131484746932983),
    "selu": (nn.SELU, {}, 1.0008515119552612),
    "sigmoid": (nn.Sigmoid, {}, 4.803835391998291),
    "silu": (nn.SiLU, {}, 1.7881293296813965),
    "softplus": (nn.Softplus, {}, 1.9203323125839233),
    "softsign": (nn.Softsign, {}, 2.338853120803833),
    "tanh": (nn.Tanh, {}, 1.5939117670059204),
}


# Of these autograd keeps the input; of the others the output, which the convolution behind shares.
KEPT_BY_INPUT = tuple(
    {cls for cls, _, _ in ACTIVATIONS.values()} - {nn.Identity, nn.LogSoftmax, nn.ReLU, nn.Sigmoid, nn.Tanh}
)


def activation(name: str) -> tuple[nn.Module, float]:
    """Return a new module of the activation called ``name`` and its gamma, which the module does not apply.

    Raises:
        ValueError: If no gamma is known for ``name``; signal propagation would not be preserved.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(
            f"act_layer={name!r} has no gamma: a Normalizer-Free network needs an activation whose output variance is "
            f"known. Expected one of {', '.join(ACTIVATIONS)}; to add one, give it an entry in "
            "nfnet_timm.layers.ACTIVATIONS."
        )
    cls, kwargs, gamma = ACTIVATIONS[name]
    return cls(**kwargs), gamma


class ScaledAct(nn.Module):
    """``gamma * act(x)``, shape kept: an activation that no convolution follows to carry its gamma."""

    def __init__(self, name: str):
        super().__init__()
        self.act, self.gamma = activation(name)

    def forward(self, x: Tensor) -> Tensor:
        """Activate and scale ``x``."""
        return self.act(x) * self.gamma


class WSConv2d(Conv2dSame):
    """Convolution whose weight is standardized per output channel, with SAME padding and always a bias.

    ``W_hat = scale * gain * (W - mean) * rsqrt(max(var * fan_in, eps))`` over the fan-in of each output channel,
    computed in float32 also for half-precision weights and under autocast, in float64 for those of float64. At
    ``scale`` 1 and gain 1 each output channel's weights have zero mean and unit norm.

    Args:
        in_chs: Input channels; forward takes (N, in_chs, H, W), any H and W of at least 1.
        out_chs: Output channels; forward returns (N, out_chs, ceil(H / stride), ceil(W / stride)).
        scale: Constant factor of the input (gamma and beta), carried by the weight.
    Raises:
        ValueError: From forward, if the input has another number of channels or no pixels.
    Source: arXiv 2101.08692, section 4.2; ``WSConv2D`` in deepmind-research/nfnets/base.py.
    Differs from timm: ``ScaledStdConv2dSame`` takes ``rsqrt(var + eps)`` and keeps ``gain`` as (O, 1, 1, 1), which
        its optimizers decay and its AGC clips element by element. Here ``gain`` is (O,); both shapes load.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        scale: float = 1.0,
        eps: float = 1e-4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            in_chs,
            out_chs,
            kernel_size,
            stride,
            dilation,
            groups,
            device=device,
            dtype=dtype,
        )
        self.gain = nn.Parameter(torch.ones(out_chs, device=device, dtype=dtype))
        self.scale = scale
        self.eps = eps

    def reset_parameters(self) -> None:
        """Initialise as the authors do: weight N(0, 1 / fan_in), bias 0, gain 1."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, "gain"):  # torch's constructor comes here before there is one
            nn.init.ones_(self.gain)

    def standardized_weight(self) -> Tensor:
        """Return ``W_hat`` in the shape and dtype of ``weight``."""
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        weight, gain = self.weight.to(dtype), self.gain.to(dtype)
        if weight.is_contiguous():
            weight = standardize(weight, gain, self.scale, self.eps)
        else:  # channels-last: a row in the order of memory, so that nothing is copied
            weight = standardize(weight.permute(0, 2, 3, 1), gain, self.scale, self.eps).permute(0, 3, 1, 2)
        return weight.to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, in_chs, H, W) to (N, out_chs, ceil(H / stride), ceil(W / stride))."""
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(
                f"expected images or features of shape (N, {self.in_channels}, H, W) with at least one pixel, got "
                f"{list(x.shape)}. For images with another number of channels, build the model with in_chans=."
            )
        return self.convolve(x, self.standardized_weight())

    @torch.jit.unused
    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return the plain convolution that this one is at present: standardized for good, gain and scale inside.

        timm's ``reparameterize_model`` puts it in this one's place.
        """
        plain: Any = Conv2dSame
        if self.stride[0] == 1:
            plain = partial(nn.Conv2d, padding=self.padding)  # type: ignore[arg-type]
        conv = plain(
            self.in_channels,
            self.out_channels,
            self.kernel_size[0],
            stride=self.stride[0],
            dilation=self.dilation[0],
            groups=self.groups,
            device="meta",
        )
        conv.weight = nn.Parameter(self.standardized_weight(), self.weight.requires_grad)
        conv.bias = self.bias
        return conv.train(self.training)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        gain = state_dict.get(prefix + "gain")
        if gain is not None and gain.dim() == 4:  # timm's shape, (O, 1, 1, 1)
            state_dict[prefix + "gain"] = gain.flatten()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class GlobalMean(nn.Module):
    """Mean over all pixels: (N, C, H, W) to (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x``."""
        # By a sum, so that the backward pass divides the mean's gradient, not a map; a half-precision sum overflows.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return (x.sum((2, 3), keepdim=True, dtype=dtype) / (x.shape[2] * x.shape[3])).to(x.dtype)


class PixelConv2d(nn.Conv2d):
    """1 x 1 convolution of maps of a single pixel, (N, C, 1, 1), as the matrix product that it is.

    Differs from torch: its convolution takes up to several times as long for the gradients.
    """

    def reset_parameters(self) -> None:
        """Initialise as Haiku's linear layers are: weight N(0, 1 / in_chs) cut at two deviations, bias 0."""
        std = self.in_channels**-0.5
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x``."""
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class SqueezeExcite(nn.Module):
    """Channel gate ``2 * sigmoid(fc2(relu(fc1(mean(x)))))``: (N, C, H, W) to (N, C, 1, 1), for the caller to apply.

    The factor 2 keeps the variance: the mean of the sigmoid at initialisation is one half.

    Args:
        chs: Channels of the input.
        rd_ratio: Hidden channels as a share of ``chs``, rounded down, at least one.
    Source: ``SqueezeExcite`` in deepmind-research/nfnets/base.py; plain ReLU, no gamma.
    Differs from timm: ``SEModule`` multiplies the feature map itself, and rounds the hidden channels to 8.
    """

    def __init__(
        self,
        chs: int,
        rd_ratio: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        rd_chs = max(1, int(chs * rd_ratio))
        self.pool = GlobalMean()
        self.fc1 = PixelConv2d(chs, rd_chs, 1, device=device, dtype=dtype)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = PixelConv2d(rd_chs, chs, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate of ``x``."""
        return 2 * self.fc2(self.act(self.fc1(self.pool(x)))).sigmoid()


class Classifier(nn.Linear):
    """Linear layer from pooled features to logits, (N, in_features) to (N, out_features), initialised as the authors'.

    Args:
        std: Standard deviation of the weight at the start.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        std: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.std = std
        super().__init__(in_features, out_features, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialise the weight as N(0, std^2) and the bias as 0."""
        nn.init.normal_(self.weight, std=self.std)
        nn.init.zeros_(self.bias)

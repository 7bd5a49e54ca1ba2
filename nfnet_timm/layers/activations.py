"""Activations and their gammas. gamma is the factor that gives the output of an activation unit variance.

Source: arXiv 2101.08692, section 4.3; deepmind-research/nfnets/base.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfnet_timm.kernels.gelu import gelu_tanh

__all__ = ["ACTIVATIONS", "GELUTanh", "ScaledAct", "activation"]


class GELUTanh(nn.Module):
    """GELU in its tanh form, JAX's default, exact to the rounding of the dtype. Takes and returns any shape.

    Differs from torch: for float32 on a CPU it computes no tanh; see ``gelu_tanh``. A scripted one is ``F.gelu``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``x``."""
        if torch.jit.is_scripting():
            return F.gelu(x.view_as(x), approximate="tanh")  # a view, for the reason in gelu_tanh
        return gelu_tanh(x)


# Each activation with its gamma, 1 / std(act(z)) for z ~ N(0, 1). The names are timm's. The authors' "gelu" is JAX's
# tanh form and is called "gelu_tanh" here. "gelu" is the erf form, with the same gamma.
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


def activation(name: str) -> tuple[nn.Module, float]:
    """Return a new module for the activation ``name``, and its gamma. The module does not multiply by gamma.

    Raises:
        ValueError: If no gamma is known for ``name``: the network could not keep its variance.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(
            f"act_layer={name!r} has no gamma: a Normalizer-Free network needs an activation whose output variance is "
            f"known. Expected one of {', '.join(ACTIVATIONS)}; to use another one, add it with its gamma to "
            "nfnet_timm.layers.activations.ACTIVATIONS."
        )
    cls, kwargs, gamma = ACTIVATIONS[name]
    return cls(**kwargs), gamma


class ScaledAct(nn.Module):
    """``gamma * act(x)`` in the shape of ``x``, for an activation without a convolution after it.

    Other activations have their gamma in the weight of the next convolution.
    """

    def __init__(self, name: str):
        super().__init__()
        self.act, self.gamma = activation(name)

    def forward(self, x: Tensor) -> Tensor:
        """Activate and scale ``x``."""
        return self.act(x) * self.gamma

"""Activations and their gammas, by which a network without normalization keeps its variance.

Source: arXiv 2101.08692, section 4.3; deepmind-research/nfnets/base.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfnet_timm.kernels.gelu import gelu_tanh

__all__ = ["ACTIVATIONS", "KEPT_BY_INPUT", "GELUTanh", "OverwritingReLU", "ScaledAct", "activation"]


class GELUTanh(nn.Module):
    """GELU in its tanh form, JAX's, to the rounding of the dtype, of any shape.

    Differs from torch: on a CPU it takes no tanh, which is most of the time of ``F.gelu(x, approximate="tanh")``. That
    it is on other devices, in what is exported, scripted or traced, and in ``torch.func``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``x``."""
        if torch.jit.is_scripting():
            return F.gelu(x.view_as(x), approximate="tanh")  # as in gelu_tanh
        return gelu_tanh(x)


class OverwritingReLU(nn.ReLU):
    """ReLU in place, but of views: with a backward hook, as Opacus and captum set, a module's output is one.

    Differs from torch: its ReLU with ``inplace=True`` raises there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``x``."""
        if torch.jit.is_scripting():
            return F.relu(x)
        # A compiler decides by itself what to overwrite; to torch.fx, x is no tensor.
        return F.relu(x, inplace=not torch.compiler.is_compiling() and isinstance(x, Tensor) and not x._is_view())


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
            "nfnet_timm.layers.activations.ACTIVATIONS."
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

"""Normalizer-Free networks for timm, as their authors published them.

Importing this package registers its models and optimizers with timm; after installation that happens without an import
(``autoload``). The modules, in reading order:

    eager               where the paths that are made for a CPU may be taken
    standardize, gelu   weight standardization and the tanh GELU, fast
    same                SAME padding: convolution and pooling
    layers              the parts: weight-standardized convolution, activation gammas, squeeze-excite
    variants            every network as plain numbers
    block               the residual block and the stems
    nfnet               the network, under timm's contract; registration
    recompute           less memory in training
    pretrained          from a checkpoint to a model
    haiku_reader, _writer the authors' checkpoints, read without running them, and written
    orbax_reader, haiku   those of jax_privacy; the authors' names and ours
    optim/              adaptive gradient clipping; optimizers that clip, in timm's registry
    facts, sources      the published numbers; what a repo on the Hub is made from
    folder, card        a repo's folder, and its model card
    weights_file        model.safetensors, written
    convert, download   the authors' files into folders and back; from where they were released
    publish, hub        onto the Hub and back, compared
    recipes/            the published hyper-parameters for timm's train.py
    signal_propagation  measuring the variance through a network
    autoload            how timm finds this package
    cli, demo           the ``nfnet-timm`` command

    paper               deepmind-research          timm                     here
    alpha, beta         alpha, beta                alpha, beta              alpha; beta is in the weight
    gamma               nonlinearities[act]        _nonlin_gamma            ACTIVATIONS; in the weight
    skip gain, zeta     skip_gain                  skipinit_gain            skipinit_gain
    gain g of W_hat     gain, (O,)                 gain, (O, 1, 1, 1)       gain, (O,)
    lambda of AGC       clipping                   clip_factor              clip_factor
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nfnet_timm import autoload

if TYPE_CHECKING:
    from nfnet_timm.block import NormFreeBlock
    from nfnet_timm.nfnet import NormFreeNet
    from nfnet_timm.optim.agc import adaptive_clip_grad_, clip_stats, unitwise_norm
    from nfnet_timm.variants import VARIANTS, NormFreeCfg

__version__ = "0.1.0"
__all__ = [
    "NormFreeNet",
    "NormFreeBlock",
    "NormFreeCfg",
    "VARIANTS",
    "adaptive_clip_grad_",
    "clip_stats",
    "unitwise_norm",
]

# Resolved on first use (PEP 562): torch may be only half imported when this module is.
_HOMES = {
    "NormFreeNet": "nfnet",
    "NormFreeBlock": "block",
    "NormFreeCfg": "variants",
    "VARIANTS": "variants",
    "adaptive_clip_grad_": "optim.agc",
    "clip_stats": "optim.agc",
    "unitwise_norm": "optim.agc",
}

if not autoload.torch_is_being_imported():
    autoload.watch_timm()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"nfnet_timm.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nfnet_timm' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

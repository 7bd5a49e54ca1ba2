"""Normalizer-Free networks for timm, as their authors published them.

Importing this package registers its models and optimizers with timm. After installation no import is needed (see
``autoload``). This is the map of the code. A module imports only from entries below its own:

    cli             the ``nfnet-timm`` command; its subcommands demo and doctor have modules of their own
    privacy         per-sample gradients for Opacus
    publish/        weights to the Hugging Face Hub, with a model card
    models/         the networks: the table, the block, the network and its registration
    optim/          adaptive gradient clipping, and optimizers that clip
    formats/        files to state dicts and back: the authors', train.py's, Orbax's
    layers/         the formulas of the papers as modules
    kernels/        fast implementations of these formulas
    compat/         the private functions of torch and timm that are used
    autoload, lazy  how timm finds this package; names that are imported on first use
    recipes/        the published hyper-parameters for timm's train.py
    installation    the command that installs this package, for messages and cards
    signals         Ctrl-C and other signals that stop the command

A second rule prevents circular imports. ``import timm`` imports ``models.nfnet``, and ``import timm.optim`` imports
``optim.agc_optimizer``. The modules that these two import must not import timm at their top, only inside functions.
Example: ``models.nfnet`` imports ``layers.ws_conv``. If ws_conv imported timm at its top, then importing ws_conv would
import timm, timm would import ``models.nfnet``, and that would import the half-finished ws_conv.

docs/inside.md lists the line of code for each formula of the papers.
"""

from typing import TYPE_CHECKING

from nfnet_timm import autoload
from nfnet_timm.lazy import lazy_names

if TYPE_CHECKING:
    from nfnet_timm.models.batch_norm import with_batch_norm
    from nfnet_timm.models.block import NormFreeBlock
    from nfnet_timm.models.nfnet import NormFreeNet
    from nfnet_timm.models.reparameterize import reparameterize
    from nfnet_timm.models.variants import VARIANTS, NormFreeCfg
    from nfnet_timm.optim.agc import adaptive_clip_grad_, clip_stats, unitwise_norm
    from nfnet_timm.publish.push import push_to_hub

__version__ = "0.1.0"
__all__ = [
    "NormFreeNet",
    "NormFreeBlock",
    "NormFreeCfg",
    "VARIANTS",
    "adaptive_clip_grad_",
    "clip_stats",
    "push_to_hub",
    "reparameterize",
    "unitwise_norm",
    "with_batch_norm",
]

_HOMES = {
    "NormFreeNet": "models.nfnet",
    "NormFreeBlock": "models.block",
    "NormFreeCfg": "models.variants",
    "VARIANTS": "models.variants",
    "adaptive_clip_grad_": "optim.agc",
    "clip_stats": "optim.agc",
    "push_to_hub": "publish.push",
    "reparameterize": "models.reparameterize",
    "unitwise_norm": "optim.agc",
    "with_batch_norm": "models.batch_norm",
}

if not autoload.torch_is_being_imported():
    autoload.watch_timm()

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

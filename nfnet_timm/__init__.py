"""Normalizer-Free networks for timm, as their authors published them.

Importing this package registers its models and optimizers with timm; after installation that happens without an import
(``autoload``). The floors; an import goes down this list and never up:

    cli             the ``nfnet-timm`` command; demo and doctor, of its commands
    autoload, lazy  how timm finds this package; names that are imported on first use
    installation    the command that installs it, for messages and cards
    hub/            weights onto the Hugging Face Hub, with all that is known of them
    models/         the networks: the table, the block, the network, its registration
    optim/          adaptive gradient clipping, and optimizers that clip
    formats/        files into state dicts and back: the authors', train.py's, Orbax's
    layers/         the formulas of the papers as modules
    kernels/        the same formulas made fast
    recipes/        the published hyper-parameters for timm's train.py

One rule more. While timm is being imported, it imports ``models.nfnet``, and with it what that imports. Whoever imports
one of those modules first would have timm import it again half-way. So what ``models.nfnet`` and ``optim.twins`` import
imports timm in functions only; they themselves, and what they do not import, may do so at the top.

docs/inside.md has the way from each formula of the papers to its line, and the words of the four code bases.
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

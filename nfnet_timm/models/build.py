"""Build a network from its name with timm's builder, and load its weights without initialising them first.

``create_model(..., pretrained=True)`` builds the network on the meta device, and the tensors of the checkpoint become
its parameters. A file in the Hub's cache stays memory-mapped, so the weights are read from it at their first use.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nfnet_timm.formats.authors import fetched, is_url, load_state_dict
from nfnet_timm.formats.orbax_reader import is_orbax
from nfnet_timm.models.state_dict import check_state_dict, infer_variant
from nfnet_timm.models.variants import VARIANTS

__all__ = ["build_network", "load_model"]


def build_network(network: type[nn.Module], name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Return the network ``name`` of the table ``VARIANTS``, as timm's entrypoints do, with their arguments."""
    from timm.models import build_model_with_cfg

    build = partial(
        build_model_with_cfg,
        network,
        name,
        pretrained,
        model_cfg=VARIANTS[name].cfg,
        feature_cfg={"flatten_sequential": True},
    )
    model: Any
    if not pretrained:
        return build(**kwargs)
    # On the meta device, because the weights are loaded next. Random weights would cost time and memory.
    device = torch.device(kwargs.pop("device", None) or torch.get_default_device())
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    cfg = kwargs.get("pretrained_cfg")  # a dict, timm's PretrainedCfg, or a tag
    file = overlay.get("file", cfg.get("file") if isinstance(cfg, dict) else getattr(cfg, "file", None))
    if file is not None and (is_url(file) or not isinstance(file, (str, Path))):
        with fetched(file) as path:
            local = {**overlay, "file": path}
            model = build_network(network, name, pretrained, device=device, pretrained_cfg_overlay=local, **kwargs)
        model.pretrained_cfg["file"] = file if is_url(file) else None
        return model
    of_authors = file is not None and (str(file).endswith(".npz") or is_orbax(Path(file)))
    if of_authors:
        overlay["custom_load"] = True  # timm then calls the network's load_pretrained
    strict = kwargs.get("pretrained_strict", True)
    model = build(
        device="meta",
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=partial(check_state_dict, name=name) if strict else None,
        **kwargs,
    )
    foreign = bool(model.pretrained_cfg.get("file") or model.pretrained_cfg.get("state_dict"))
    return _materialize(model, device, copy=foreign and not of_authors)


def load_model(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model in a file of the authors or an Orbax checkpoint, and its arguments of ``create_model``.

    Raises:
        ValueError: If the file does not contain one of the authors' networks.
    """
    import timm

    state_dict = load_state_dict(path)
    try:
        name, arguments = infer_variant(state_dict)
        size = VARIANTS[name].train_size
        model: Any = timm.create_model(
            name,
            device="meta",
            pretrained_cfg_overlay={
                "num_classes": arguments.get("num_classes", 1000),
                "input_size": (arguments.get("in_chans", 3), size, size),
            },
            **arguments,
        )
        model.load_state_dict(check_state_dict(state_dict, model, name, exact=True))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return model, arguments


def _materialize(model: Any, device: torch.device, copy: bool) -> Any:
    """Return ``model`` on ``device``, and initialise the parameters that the checkpoint did not contain.

    Args:
        copy: Whether to copy the loaded tensors. This is necessary for the user's state dict, and for a file of the
            user, which may be overwritten while the model is in use. Nobody writes to a file in the Hub's cache.
    """
    # Parameters that were not loaded are still on the meta device. ``reset_parameters`` initialises all parameters of a
    # module, so all of them get new memory first. Afterwards the module gets its loaded parameters back.
    fc = getattr(getattr(model, "head", None), "fc", None)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        filled = {key: p for key, p in own.items() if not p.is_meta}
        if len(filled) < len(own):
            for key, p in own.items():
                setattr(module, key, nn.Parameter(torch.empty_like(p, device=device), p.requires_grad))
            if module is fc:
                model.init_weights(needs_reset=False)
            else:
                module.reset_parameters()
            for key, p in filled.items():
                setattr(module, key, p)
    if copy:
        for param in model.parameters():
            param.data = param.data.clone()
    return model.to(device)

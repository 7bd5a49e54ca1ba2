"""Optimizers that clip adaptively: parameter groups, a factory, and ``agc-*`` names in timm's registry.

Source of the groups: ``_make_opt`` in deepmind-research/nfnets/experiment_nfnets.py.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, wraps
from typing import Any

import timm.utils.clip_grad
from timm.optim import OptimInfo, create_optimizer_v2, list_optimizers, param_groups_layer_decay
from timm.optim._optim_factory import default_registry
from torch import Tensor, nn
from torch.optim import Optimizer

from nfnet_timm.agc import clip_each_, is_dense

__all__ = ["agc_param_groups", "attach_agc", "create_optimizer"]

CLIP_FACTOR, CLIP_EPS = 0.01, 1e-3  # the authors' values, for batches of 4096


def agc_param_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    clip_factor: float = CLIP_FACTOR,
    clip_eps: float = CLIP_EPS,
    layer_decay: float | None = None,
    **layer_decay_kwargs: Any,
) -> list[dict[str, Any]]:
    """Return the authors' parameter groups of any model, each trainable parameter in exactly one.

    Clipped but not decayed: gains, biases, skip gains, the parameters of normalization layers, and what the model's
    ``no_weight_decay()`` names. Decayed but not clipped: the weight of the classifier, found by timm's
    ``get_classifier()``. All else is both.

    Args:
        layer_decay: Factor of the learning rate from layer to layer, as timm's ``param_groups_layer_decay`` has it;
            that takes ``layer_decay_kwargs``.
    Differs from timm: which parameters are clipped is told by what they are, not by their position in the model.
    """
    classifier = {id(p) for p in _classifier_weights(model)}
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    not_decayed = {
        id(p)
        for module_name, module in model.named_modules()
        for name, p in module.named_parameters(recurse=False)
        if "Norm" in type(module).__name__
        or sum(size != 1 for size in p.shape) <= 1
        or f"{module_name}.{name}".lstrip(".") in exempt
    } - classifier
    if layer_decay is None:
        groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    else:
        groups = param_groups_layer_decay(model, 0.0, layer_decay=layer_decay, **layer_decay_kwargs)
    out: dict[tuple[Any, ...], dict[str, Any]] = {}
    for i, group in enumerate(groups):
        for p in group["params"]:
            decayed, clipped = id(p) not in not_decayed, id(p) not in classifier
            key = (group.get("lr_scale", i), decayed, clipped)
            settings = {**group, "params": [], "weight_decay": weight_decay if decayed else 0.0}
            settings.update(clip_factor=clip_factor if clipped else None, clip_eps=clip_eps)
            out.setdefault(key, settings)["params"].append(p)
    return list(out.values())


def create_optimizer(
    model: nn.Module,
    opt: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.0,
    clip_factor: float = CLIP_FACTOR,
    clip_eps: float = CLIP_EPS,
    layer_decay: float | None = None,
    **kwargs: Any,
) -> Optimizer:
    """Return timm's optimizer ``opt`` over ``agc_param_groups``, which clips adaptively before each step.

    Args:
        opt: Any name of ``timm.optim.list_optimizers()``; "sgd" is the authors', with Nesterov momentum.
        kwargs: For timm's ``create_optimizer_v2``.
    """
    groups = agc_param_groups(model, weight_decay, clip_factor, clip_eps, layer_decay)
    lookahead, _, name = opt.lower().rpartition("_")
    if f"agc-{name}" in list_optimizers():
        opt = f"{lookahead}_agc-{name}" if lookahead else f"agc-{name}"
    return attach_agc(create_optimizer_v2(groups, opt, lr=lr, **kwargs), clip_factor, clip_eps)


def attach_agc(optimizer: Optimizer, clip_factor: float = CLIP_FACTOR, clip_eps: float = CLIP_EPS) -> Optimizer:
    """Make ``optimizer`` clip adaptively before each step, and return it.

    ``clip_factor`` and ``clip_eps`` are entries of each parameter group, so they are saved in ``state_dict()`` and can
    be changed at any time; a ``clip_factor`` of None leaves a group alone. Gradients are clipped in place, after a
    gradient scaler has unscaled them, once per step however many backward passes it has, and after each run of a
    closure. A deep copy or pickle of ``optimizer`` has lost the hook, as torch has it: attach it again, or build the
    optimizer by its ``agc-`` name, whose copies clip.
    """
    optimizer.defaults.update(clip_factor=clip_factor, clip_eps=clip_eps)  # for groups that are added later
    for group in optimizer.param_groups:
        group.setdefault("clip_factor", clip_factor)
        group.setdefault("clip_eps", clip_eps)
        for p in group["params"]:
            p.agc_optimizer = True
    # A Lookahead shares the groups of the optimizer that it wraps, and calls its step.
    _add_step_pre_hook(getattr(optimizer, "_base_optimizer", optimizer), _clip_before_step)
    _warn_of_clipping_twice()
    return optimizer


def _add_step_pre_hook(optimizer: Optimizer, hook: Any) -> None:
    if hook not in optimizer._optimizer_step_pre_hooks.values():
        optimizer.register_step_pre_hook(hook)


def _clip_before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        _clip(optimizer)
        return None

    @wraps(closure)
    def clipped() -> Any:  # the gradients are those that the closure leaves
        loss = closure()
        _clip(optimizer)
        return loss

    if len(args) > 1:
        return (args[0], clipped, *args[2:]), kwargs
    return args, {**kwargs, "closure": clipped}


def _clip(optimizer: Optimizer) -> None:
    parameters: list[Tensor] = []
    factors: list[float] = []
    eps: list[float] = []
    for group in optimizer.param_groups:
        factor = group.get("clip_factor", optimizer.defaults["clip_factor"])
        if factor is not None:
            parameters += group["params"]
            factors += [factor] * len(group["params"])
            eps += [group.get("clip_eps", optimizer.defaults["clip_eps"])] * len(group["params"])
    # A fused optimizer unscales in its step; the gradient scaler has left the scale here.
    clip_each_(parameters, factors, eps, grad_scale=getattr(optimizer, "grad_scale", None))


def _classifier_weights(model: nn.Module) -> list[Tensor]:
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if get_classifier else None
    # Distilled networks have several.
    modules: list[Any] = list(classifier) if isinstance(classifier, (tuple, list)) else [classifier]
    return [m.weight for m in modules if isinstance(getattr(m, "weight", None), Tensor)]


@cache
def _clipping(base: Any) -> type[Optimizer]:
    """Return the subclass of ``base`` that splits its groups and clips; copies and pickles of it clip too."""

    class Clipping(base):
        def __init__(
            self,
            params: Iterable[Any],
            *args: Any,
            clip_factor: float = CLIP_FACTOR,
            clip_eps: float = CLIP_EPS,
            **kwargs: Any,
        ) -> None:
            super().__init__(_split(params), *args, **kwargs)
            attach_agc(self, clip_factor, clip_eps)
            _add_step_pre_hook(self, _fuse_step)

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            # torch drops hooks from copies and pickles.
            attach_agc(self, self.defaults["clip_factor"], self.defaults["clip_eps"])
            _add_step_pre_hook(self, _fuse_step)

    init: Any = Clipping.__init__
    own = inspect.signature(init).parameters
    shown = [*inspect.signature(base.__init__).parameters.values(), own["clip_factor"], own["clip_eps"]]
    init.__signature__ = inspect.Signature(sorted(shown, key=lambda parameter: parameter.kind))
    Clipping.__doc__ = f"{base.__name__} that clips adaptively before each step; see ``attach_agc``."
    Clipping.__name__ = Clipping.__qualname__ = f"Agc{base.__name__}"
    globals()[Clipping.__name__] = Clipping  # where pickles look for it
    return Clipping


def _fuse_step(optimizer: Optimizer, *_: Any) -> None:
    """Choose torch's fused step for groups on a CPU, unless the optimizer was built with another choice.

    The same to rounding, in one pass over memory. torch leaves it out by default, and rightly: it goes through memory
    whatever the strides are, and is wrong where a gradient or a buffer lies in another order than its parameter.
    """
    chosen = [optimizer.defaults.get(key, "no such option") for key in ("fused", "foreach")]
    if chosen != [None, None] or optimizer.defaults.get("differentiable"):
        return
    for group in optimizer.param_groups:
        if group["fused"] is not False:
            fits = all(_is_one_layout(p, optimizer.state.get(p, {})) for p in group["params"] if p.grad is not None)
            group["fused"] = True if fits else None


def _is_one_layout(p: Tensor, state: dict[str, Any]) -> bool:
    if p.device.type != "cpu" or not p.is_floating_point() or hasattr(p, "placements"):
        return False
    buffers = [x for x in state.values() if isinstance(x, Tensor) and x.shape == p.shape]
    return is_dense(p) and all(_strides(x) == _strides(p) for x in (p.grad, *buffers))  # type: ignore[arg-type]


def _strides(x: Tensor) -> list[int]:
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size != 1]


def _split(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Give the parameters that are marked, as the classifier's weight of our networks is, groups that are not clipped.

    timm's factory hands over parameters or groups, and no model that could be asked for its classifier.
    """
    entries = list(params)
    groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    split: list[dict[str, Any]] = []
    for group in groups:
        members = group["params"]
        members = [members] if isinstance(members, Tensor) else list(members)
        tensors = [p[1] if isinstance(p, tuple) else p for p in members]  # torch takes named parameters too
        is_exempt = [getattr(p, "agc_exempt", False) for p in tensors]
        exempt = [p for p, left_out in zip(members, is_exempt, strict=True) if left_out]
        rest = [p for p, left_out in zip(members, is_exempt, strict=True) if not left_out]
        if rest or not members:
            split.append({**group, "params": rest})
        if exempt:
            split.append({**group, "params": exempt, "clip_factor": None})
    return split


def _warn_of_clipping_twice() -> None:
    """Have timm's ``--clip-mode agc`` say so where an optimizer here clips the same gradients."""
    clip = timm.utils.clip_grad.adaptive_clip_grad
    if getattr(clip, "warns", False):
        return

    @wraps(clip)
    def warning_clip(parameters: Any, *args: Any, **kwargs: Any) -> None:
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if any(getattr(p, "agc_optimizer", False) for p in parameters):
            warnings.warn(
                "gradients are clipped adaptively twice, by timm's clip mode 'agc' and by the optimizer: use one, "
                "`--clip-mode agc` with a plain optimizer or `--opt agc-...` without --clip-grad",
                RuntimeWarning,
                stacklevel=3,
            )
        clip(parameters, *args, **kwargs)

    warning_clip.warns = True  # type: ignore[attr-defined]
    timm.utils.clip_grad.adaptive_clip_grad = warning_clip


def _register() -> None:
    for name in map(str, list_optimizers()):
        info: OptimInfo = default_registry.get_optimizer_info(name)
        # Left out: those that are imported by name as they need a GPU, and those whose step differentiates gradients.
        if isinstance(info.opt_class, str) or info.second_order or name.startswith("agc-"):
            continue
        default_registry.register(
            replace(
                info,
                name=f"agc-{name}",
                opt_class=_clipping(info.opt_class),  # type: ignore[arg-type]
                description=f"{info.description.rstrip('.')}, with adaptive gradient clipping (nfnet_timm)",
            )
        )


_register()

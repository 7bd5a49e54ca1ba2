"""Identify the network of a checkpoint, and check whether a checkpoint fits a network."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from nfnet_timm.models.variants import VARIANTS

__all__ = ["check_state_dict", "infer_variant"]


def infer_variant(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the name of the network with these arrays, and the arguments of ``create_model`` that it needs.

    Widths, depths and group size are found from the shapes. If no named network has them, the result is the smallest
    network of the family with other arguments.

    Raises:
        ValueError: If these are not the arrays of a Normalizer-Free network.
    """
    _refuse_timms_own(state_dict)
    deep_stem = any(name.startswith("stem.conv4.") for name in state_dict)
    blocks = [name.split(".")[:2] for name in state_dict if name.endswith(".conv3.weight")]
    depths = tuple(blocks.count(["stages", str(i)]) for i in range(4))
    kernels = [*(f"stages.{i}.0.conv3.weight" for i in range(4)), "stages.3.0.conv2.weight"]
    kernels.append("stem.conv1.weight" if deep_stem else "stem.conv.weight")
    for name in (*kernels, "stages.0.0.skipinit_gain"):
        if name not in state_dict:
            names = ", ".join(list(state_dict)[:3]) or "none"
            raise ValueError(
                f"not the arrays of a Normalizer-Free network: {name!r} is missing; the names begin with {names}. "
                "Expected those of an NFNet, NF-ResNet or NF-RegNet of nfnet_timm or timm's dm_nfnet_*"
            )
    for name in kernels:
        if state_dict[name].dim() != 4 or 0 in state_dict[name].shape:
            raise ValueError(f"{name} has shape {tuple(state_dict[name].shape)}, expected that of a convolution")
    *last, conv2, stem = (state_dict[name].shape for name in kernels)
    channels, (mid_chs, group_size) = tuple(shape[0] for shape in last), conv2[:2]
    found: dict[str, Any] = {
        "stem_type": "deep_quad" if deep_stem else "3x3" if stem[2] == 3 else "7x7_pool",
        "depths": depths,
        "channels": channels,
        "group_size": None if mid_chs == group_size else group_size,
    }
    has_se = any(".attn" in name for name in state_dict)
    overrides: dict[str, Any] = {}
    if "head.fc.bias" in state_dict and state_dict["head.fc.bias"].numel() != 1000:
        overrides["num_classes"] = state_dict["head.fc.bias"].numel()
    if stem[1] != 3:
        overrides["in_chans"] = stem[1]
    # Networks with the same stem and the same use of squeeze-excite are a family. VARIANTS lists its smallest first.
    family = None
    for variant_name, variant in VARIANTS.items():
        cfg = variant.cfg
        if cfg.stem_type != found["stem_type"] or bool(cfg.rd_ratio) != has_se:
            continue
        family = family or variant_name
        own = {**asdict(cfg), "channels": tuple(cfg.stage_chs)}
        if all(own[key] == value for key, value in found.items()):
            return variant_name, overrides
    if family is None:
        raise ValueError(
            f"no network of nfnet_timm has this combination: {found}, squeeze-excite: {has_se}. Expected the stem and "
            "squeeze-excite of one of the networks in nfnet_timm.VARIANTS"
        )
    own = asdict(VARIANTS[family].cfg)
    if own["width_factor"] != 1:
        found["width_factor"] = 1.0
    return family, {**{key: value for key, value in found.items() if own[key] != value}, **overrides}


def check_state_dict(
    state_dict: dict[str, Tensor], model: nn.Module, name: str, exact: bool = False
) -> dict[str, Tensor]:
    """Return ``state_dict`` if its arrays fit ``model``. The numbers of classes and input channels may differ.

    timm adapts these two numbers when it loads the weights.

    Args:
        exact: Whether the numbers of classes and input channels must be the same, too, and all arrays floating-point.
    Raises:
        ValueError: If they do not fit. The message names the wrong arrays, and the network of the checkpoint.
    """
    _refuse_timms_own(state_dict)
    expected = {key: _comparable(key, t, exact) for key, t in model.state_dict().items()}
    given = {key: _comparable(key, t, exact) for key, t in state_dict.items()}
    heads = ("head.fc.weight", "head.fc.bias")  # missing from a model or a checkpoint without classes
    free = () if exact else heads
    if not exact and heads[1] in given and tuple(state_dict[heads[1]].shape) != (getattr(model, "num_classes", None),):
        given.pop(heads[0], None)  # timm removes it before loading, so its shape does not matter
    problems = [f"{key} is missing" for key in expected if key not in given and key not in free]
    problems += [f"{key} is surplus" for key in given if key not in expected and key not in free]
    problems += [
        f"{key} has shape {tuple(state_dict[key].shape)}, expected {expected[key]}"
        for key in expected
        if key in given and given[key] != expected[key]
    ]
    if all(key in state_dict for key in heads) and state_dict[heads[0]].shape[:1] != state_dict[heads[1]].shape[:1]:
        rows, biases = (list(state_dict[key].shape[:1]) for key in heads)
        problems.append(f"head.fc has {rows} rows and {biases} biases")
    if not problems:
        for key, tensor in state_dict.items():
            if exact and not tensor.is_floating_point():
                raise ValueError(
                    f"{key} is {tensor.dtype}: expected a floating-point dtype, such as torch.float32; convert it first"
                )
        return state_dict
    try:
        other, overrides = infer_variant(state_dict)
        arguments = "".join(f", {key}={value!r}" for key, value in overrides.items())
        hint = f"create_model({other!r}{arguments}) has networks of these widths and depths"
    except ValueError as error:
        hint = str(error)
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    raise ValueError(f"the checkpoint does not fit {name}: {'; '.join(problems[:3])}{more}. {hint}")


def _refuse_timms_own(state_dict: Mapping[str, Tensor]) -> None:
    if "stem.conv1.gain" in state_dict and not any(key.endswith("skipinit_gain") for key in state_dict):
        raise ValueError(
            "this is a checkpoint of timm's own nfnet_f0 to f7, which differ from the published networks (no skip "
            "gains, gamma in the weights, erf GELU): expected arrays like stages.0.0.skipinit_gain. Load it into "
            "timm's network of the same name, such as timm.models.nfnet.nfnet_f0(), or set NFNET_TIMM_AUTOLOAD=0: "
            "create_model then builds timm's network"
        )


def _comparable(key: str, tensor: Tensor, exact: bool) -> tuple[int | str, ...]:
    """Return the shape of an array in a form that can be compared.

    Both shapes of a gain, (O,) and (O, 1, 1, 1), give (O,). Unless ``exact``, a name replaces a size that timm adapts.
    """
    shape = tuple(tensor.shape)
    if key.endswith(".gain") and len(shape) == 4:  # timm's (O, 1, 1, 1)
        return (tensor.numel(),)
    if key.endswith(".skipinit_gain") and shape == (1,):  # after vectorize_skip_gains()
        return ()
    if exact:
        return shape
    if key in ("stem.conv1.weight", "stem.conv.weight"):
        return (*shape[:1], "C", *shape[2:])
    if key in ("head.fc.weight", "head.fc.bias"):
        return ("classes", *shape[1:])
    return shape

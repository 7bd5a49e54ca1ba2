"""Reads from a run of timm's train.py its network, its accuracy and the options that the card shows.

docs/weights.md says how each option is used. Source: timm's train.py at commit aa4b585.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import timm
from timm.data import resolve_data_config
from torch import Tensor

from nfnet_timm.compat.timm import config_file
from nfnet_timm.formats.train_checkpoint import TrainCheckpoint
from nfnet_timm.models.state_dict import check_state_dict
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.read_folder import LABELS, check_preprocessing, described_model, read_config
from nfnet_timm.publish.train_data import Images, why_not_unseen

__all__ = ["Accuracy", "accuracy_of", "network_of", "published_cfg", "shown_options"]

# Arguments that affect training only.
_TRAINING_KWARGS = ("recompute_acts", "drop_rate", "drop_path_rate")

# Options that the card shows, because they describe the training. It must not contain paths or names of machines.
_SHOWN_OPTIONS = (
    "pretrained",
    "opt",
    "opt_kwargs",
    "lr",
    "batch_size",
    "grad_accum_steps",
    "world_size",
    "epochs",
    "warmup_epochs",
    "sched",
    "momentum",
    "weight_decay",
    "clip_grad",
    "clip_mode",
    "layer_decay",
    "drop",
    "drop_path",
    "smoothing",
    "aa",
    "mixup",
    "cutmix",
    "reprob",
    "model_ema",
    "model_ema_decay",
    "amp",
    "amp_dtype",
    "seed",
)

# Their types. A checkpoint may have options of any other type.
_SHOWN_TYPES = (bool, int, float, str, list, tuple, dict)

# Options that have no effect without another option.
_NOTHING_WITHOUT = {"clip_mode": "clip_grad", "amp_dtype": "amp", "model_ema_decay": "model_ema"}


@dataclass(frozen=True)
class Accuracy:
    """An accuracy that train.py measured with the published weights, on images that training did not see.

    Args:
        label: "Top-1" or "Top-5".
        value: Percent.
        size: Height and width of the images, in pixels.
        crop_pct: Size of the centre crop, as a fraction of the resized image.
    """

    label: str
    value: float
    size: tuple[int, int]
    crop_pct: float


def network_of(
    args: Mapping[str, Any], state_dict: dict[str, Tensor], where: str = "the options of train.py in it"
) -> tuple[Any, dict[str, Any]]:
    """Return the network of a run, with the weights, and its arguments of ``timm.create_model``.

    The ``pretrained_cfg`` of the network has the preprocessing of the run.

    Args:
        args: Options of train.py.
        where: Where the options come from, for messages.
    Raises:
        ValueError: If it is not a network of this package, cannot be built, or does not fit the weights.
    """
    name, base_arguments = _base(args["model"])
    input_size = args.get("input_size")
    given = {
        "in_chans": args.get("in_chans") or (input_size[0] if input_size else 3),
        "num_classes": state_dict["head.fc.bias"].numel() if "head.fc.bias" in state_dict else 0,
        "global_pool": args.get("gp"),
        **(args.get("model_kwargs") or {}),
    }
    own = {key: value for key, value in given.items() if value is not None}  # timm drops None, too
    arguments = {**base_arguments, **own}
    described = described_model(name, arguments, where)
    check_state_dict(state_dict, described, name, exact=True)  # before a network of any size is built
    # The same call as in train.py. check_folder compares the published folder with this model.
    model: Any = timm.create_model(args["model"], **own)
    model.load_state_dict(state_dict)
    model.pretrained_cfg = published_cfg(model, args, where)
    return model.eval(), {key: value for key, value in arguments.items() if key not in _TRAINING_KWARGS}


def _base(model: str) -> tuple[str, dict[str, Any]]:
    """Return the architecture and the arguments of the network that ``--model`` names."""
    try:
        path = config_file(model)
        if path is not None:
            path.stat()
    except Exception as error:  # from the disk, the Hub or its client
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"--model {model}: its config.json cannot be read: {reason}. Run this where that folder is, or connect to "
            "the Hub"
        ) from None
    if path is not None:
        config = read_config(path)
        return config.architecture, config.model_args
    name = model.split(".")[0]
    if name not in VARIANTS:
        close = " or ".join(get_close_matches(name, VARIANTS)) or "nfnet_f0"
        raise ValueError(f"--model {model}: no such network; expected one of nfnet_timm, such as {close}")
    return name, {}


def published_cfg(model: Any, args: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the ``pretrained_cfg`` of trained weights, with the preprocessing of ``model`` and ``args``.

    Args:
        args: Options of train.py that change the preprocessing in the ``pretrained_cfg`` of ``model``.
        where: Where the preprocessing comes from, for messages.
    Raises:
        ValueError: If timm cannot create transforms from it.
    """
    chans = model.in_chans  # with --in-chans alone, timm's data configuration still has three channels
    for key in ("mean", "std"):
        if args.get(key) and len(args[key]) not in (1, chans):
            raise ValueError(f"{where}: --{key} has {len(args[key])} numbers, expected 1 or {chans}")
    cfg = {**model.pretrained_cfg, **resolve_data_config(dict(args), model=model), "num_classes": model.num_classes}
    # These entries describe the initial weights of the run.
    cfg.update(dict.fromkeys(("tag", "hf_hub_id", "source", "file", "description", "notes", *LABELS)))
    cfg["input_size"] = (chans, *cfg["input_size"][1:])
    for key in ("mean", "std"):  # like train.py, use the mean of ImageNet's three values
        if len(cfg[key]) != chans:
            cfg[key] = (sum(cfg[key]) / len(cfg[key]),) * chans
    if args.get("img_size") or args.get("input_size"):
        cfg.update(test_input_size=None, pool_size=None, test_crop_pct=None)
    elif cfg.get("test_input_size"):
        cfg["test_input_size"] = (chans, *cfg["test_input_size"][1:])
    check_preprocessing(cfg, where)
    return cfg


def accuracy_of(checkpoint: TrainCheckpoint, model: Any, trained: Images | None) -> Accuracy | str:
    """Return the accuracy of these weights on images that training did not see, or a reason why it is unknown.

    Args:
        trained: The images of the training split, from ``images_of``.
    """
    args, metric = {"val_split": "validation", **checkpoint.args}, checkpoint.metric
    label = {"top1": "Top-1", "top5": "Top-5"}.get(args.get("eval_metric") or "top1")
    if metric is None:
        return "the checkpoint does not contain one"
    if label is None:
        return f"--eval-metric {args['eval_metric']!r} is not an accuracy"
    if not args["val_split"]:
        return "the run had no validation"
    if (args.get("tta") or 0) > 1:
        return f"--tta {args['tta']} averaged augmented images"
    if checkpoint.ema and args.get("model_ema_force_cpu"):
        return "with --model-ema-force-cpu, train.py did not measure the average (EMA), which is published"
    if args.get("val_num_samples"):
        return f"--val-num-samples {args['val_num_samples']} may be a part of the validation split"
    if not 0 <= metric <= 100:
        return f"{metric} is not a percentage"
    if reason := why_not_unseen(args, trained):
        return reason
    # train.py validates at the training size, not the network's test size, with a centre crop.
    cfg = model.pretrained_cfg
    return Accuracy(label, round(float(metric), 3), cfg["input_size"][1:], cfg["crop_pct"])


def shown_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the card shows: those of ``_SHOWN_OPTIONS`` that are given and have an effect."""
    unused = {option for option, other in _NOTHING_WITHOUT.items() if not args.get(other)}
    given = {option: args.get(option) for option in _SHOWN_OPTIONS if option not in unused}
    return {option: value for option, value in given.items() if isinstance(value, _SHOWN_TYPES) and value}

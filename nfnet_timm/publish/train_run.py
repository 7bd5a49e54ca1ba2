"""What the options of a run of timm's train.py make of a network, its input, and what was measured of it.

docs/weights.md says of each option what becomes of it. Source: timm's train.py at commit aa4b585.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.data import resolve_data_config

from nfnet_timm.formats.train_checkpoint import TrainCheckpoint
from nfnet_timm.layers.timm_private import config_file
from nfnet_timm.models.infer import check_state_dict
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.config_json import LABELS, check_preprocessing, described_model, read_config
from nfnet_timm.publish.train_data import why_not_unseen

__all__ = ["Figure", "figure_of", "network_of", "published_cfg"]

# How a network was trained, not what it is.
_TRAINING_KWARGS = ("recompute_acts", "drop_rate", "drop_path_rate")


@dataclass(frozen=True)
class Figure:
    """An accuracy that train.py measured of the weights that are at hand, on images that training did not see.

    Args:
        label: "Top-1" or "Top-5".
        value: Percent.
        size: Height and width of the images, pixels.
        crop_pct: The middle that was kept, as a share of the resized image.
    """

    label: str
    value: float
    size: tuple[int, int]
    crop_pct: float


def network_of(checkpoint: TrainCheckpoint) -> tuple[Any, dict[str, Any]]:
    """Return the network that train.py would build from the run's options, with the weights, and its arguments.

    The arguments are those that build it again from its architecture's name. Its ``pretrained_cfg`` has the
    preprocessing of the run.

    Raises:
        ValueError: If it is none of this package's, cannot be built, or the weights are of another one.
    """
    args, state_dict = checkpoint.args, checkpoint.state_dict
    name, base_arguments = _base(args["model"])
    input_size = args.get("input_size")
    own = {
        "in_chans": args.get("in_chans") or (input_size[0] if input_size else 3),
        "num_classes": state_dict["head.fc.bias"].numel() if "head.fc.bias" in state_dict else 0,
        "global_pool": args.get("gp"),
        **(args.get("model_kwargs") or {}),
    }
    described_model(name, {k: v for k, v in {**base_arguments, **own}.items() if v is not None}, "the run's options")
    # As train.py calls it, whatever the name is; what is published is compared with this.
    model: Any = timm.create_model(args["model"], **own)
    model.load_state_dict(check_state_dict(state_dict, model, name, exact=True))
    model.pretrained_cfg = published_cfg(model, args)
    arguments = {**base_arguments, **{key: value for key, value in own.items() if value is not None}}
    return model.eval(), {key: value for key, value in arguments.items() if key not in _TRAINING_KWARGS}


def _base(model: str) -> tuple[str, dict[str, Any]]:
    """Return the architecture and the arguments of what ``--model`` names."""
    try:
        path = config_file(model)
        if path is not None:
            path.stat()
    except Exception as error:  # whatever the disk, the Hub and its client raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"it was trained from {model!r}, whose config.json cannot be read: {reason}. Run this where train.py ran, "
            "or connect to the Hub"
        ) from None
    if path is not None:
        config = read_config(path)
        return config.architecture, config.model_args
    name = model.split(".")[0]
    if name not in VARIANTS:
        raise ValueError(f"it is a checkpoint of {model!r}: expected a network of nfnet_timm, such as nfnet_f0")
    return name, {}


def published_cfg(model: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``pretrained_cfg`` of trained weights: the preprocessing of ``model`` and ``args``, no older origin.

    Args:
        args: Options of train.py; {} where the model's own ``pretrained_cfg`` has the preprocessing.
    Raises:
        ValueError: If timm cannot make transforms of it.
    """
    chans = model.in_chans  # with --in-chans alone, timm's data configuration goes on having three
    for key in ("mean", "std"):
        if args.get(key) and len(args[key]) not in (1, chans):
            raise ValueError(f"--{key} has {len(args[key])} numbers, expected 1 or {chans}")
    cfg = {**model.pretrained_cfg, **resolve_data_config(dict(args), model=model), "num_classes": model.num_classes}
    # Of these weights, and not of those that the run began with.
    cfg.update(dict.fromkeys(("tag", "hf_hub_id", "source", "file", "description", "notes", *LABELS)))
    cfg["input_size"] = (chans, *cfg["input_size"][1:])
    for key in ("mean", "std"):  # of ImageNet's three train.py takes the mean for another number of channels
        if len(cfg[key]) != chans:
            cfg[key] = (sum(cfg[key]) / len(cfg[key]),) * chans
    if args.get("img_size") or args.get("input_size"):
        cfg.update(test_input_size=None, pool_size=None, test_crop_pct=None)
    elif cfg.get("test_input_size"):
        cfg["test_input_size"] = (chans, *cfg["test_input_size"][1:])
    check_preprocessing(cfg, "the run's options")
    return cfg


def figure_of(checkpoint: TrainCheckpoint, model: Any) -> Figure | str:
    """Return what train.py measured of exactly these weights on images that training did not see, or why there is none.

    The reason completes "no accuracy on the card: ".
    """
    args, metric = checkpoint.args, checkpoint.metric
    label = {"top1": "Top-1", "top5": "Top-5"}.get(args.get("eval_metric") or "top1")
    if metric is None:
        return "the checkpoint has none"
    if label is None:
        return f"--eval-metric {args['eval_metric']!r} is none"
    if not args.get("val_split", "validation"):
        return "the run had no validation"
    if (args.get("tta") or 0) > 1:
        return f"--tta {args['tta']} averaged augmented images"
    if checkpoint.ema and args.get("model_ema_force_cpu"):
        return "--model-ema-force-cpu measured the weights themselves, and not the average that is published"
    if args.get("val_num_samples"):
        return f"--val-num-samples {args['val_num_samples']} may be a part of the validation split"
    if not 0 <= metric <= 100:
        return f"{metric} is no percentage"
    if reason := why_not_unseen({**args, "val_split": args.get("val_split", "validation")}):
        return reason
    # train.py validates at the size of training, whatever the network's test size, and crops the middle.
    cfg = model.pretrained_cfg
    return Figure(label, round(float(metric), 3), cfg["input_size"][1:], cfg["crop_pct"])

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
from nfnet_timm.layers.timm_private import saved_config
from nfnet_timm.models.infer import check_state_dict
from nfnet_timm.models.variants import VARIANTS

__all__ = ["Figure", "figure_of", "network_of"]

# How a network was trained, not what it is.
_TRAINING_KWARGS = ("recompute_acts", "drop_rate", "drop_path_rate")


@dataclass(frozen=True)
class Figure:
    """An accuracy that train.py measured of the weights that are at hand.

    Args:
        label: "Top-1" or "Top-5".
        value: Percent.
        pixels: Height and width of the images.
        crop_pct: What was cut from their middle, as a share of the resized image.
    """

    label: str
    value: float
    pixels: int
    crop_pct: float


def network_of(checkpoint: TrainCheckpoint) -> tuple[Any, dict[str, Any]]:
    """Return the network that train.py would build from the run's options, with the weights, and its arguments.

    The arguments are those that build it again from its architecture's name. Its ``pretrained_cfg`` has the
    preprocessing of the run.

    Raises:
        ValueError: If it is none of this package's, cannot be built, or the weights are of another one.
    """
    args, state_dict = checkpoint.args, checkpoint.state_dict
    try:
        name, base_arguments, base_cfg = saved_config(args["model"])
    except Exception as error:  # whatever the disk, the Hub and its client raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"it was trained from {args['model']!r}, whose config.json is not to be had: {reason}. Run this where "
            "train.py ran, or connect to the Hub"
        ) from None
    if name not in VARIANTS:
        raise ValueError(f"it is a checkpoint of {args['model']!r}: expected a network of nfnet_timm, such as nfnet_f0")
    input_size = args.get("input_size")
    own = {
        "in_chans": args.get("in_chans") or (input_size[0] if input_size else 3),
        "num_classes": len(state_dict["head.fc.bias"]) if "head.fc.bias" in state_dict else 0,
        "global_pool": args.get("gp"),
        **(args.get("model_kwargs") or {}),
    }
    # As train.py calls it, whatever the name is; what is published is compared with this.
    model: Any = timm.create_model(args["model"], **own)
    model.load_state_dict(check_state_dict(state_dict, model, name))
    model.pretrained_cfg = _pretrained_cfg(model, base_cfg, args)
    arguments = {**base_arguments, **{key: value for key, value in own.items() if value is not None}}
    return model.eval(), {key: value for key, value in arguments.items() if key not in _TRAINING_KWARGS}


def _pretrained_cfg(model: Any, base_cfg: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    cfg = {**model.pretrained_cfg, **resolve_data_config(dict(args), model=model), "num_classes": model.num_classes}
    cfg.update(tag=None, hf_hub_id=None, source=None, file=None)
    chans = model.in_chans  # with --in-chans alone, timm's data configuration goes on having three
    cfg["input_size"] = (chans, *cfg["input_size"][1:])
    for key in ("mean", "std"):  # of ImageNet's three train.py takes the mean for another number of channels
        if len(cfg[key]) != chans:
            cfg[key] = (sum(cfg[key]) / len(cfg[key]),) * chans
    if args.get("img_size") or args.get("input_size"):
        cfg.update(test_input_size=None, pool_size=None, test_crop_pct=None)
    elif cfg.get("test_input_size"):
        cfg["test_input_size"] = (chans, *cfg["test_input_size"][1:])
    return cfg


def figure_of(checkpoint: TrainCheckpoint, model: Any) -> Figure | None:
    """Return what train.py measured of exactly these weights, on images that training did not see; None if nothing.

    Nothing is known of the average where only the weights themselves were measured (``--model-ema-force-cpu``), of a
    run without validation, whose metric is the training loss, and of one that averaged augmented images (``--tta``).
    """
    args, metric = checkpoint.args, checkpoint.metric
    label = {"top1": "Top-1", "top5": "Top-5"}.get(args.get("eval_metric", "top1"))
    measured = args.get("val_split", "validation") and not (args.get("tta") or 0) > 1
    if metric is None or label is None or not measured or (checkpoint.ema and args.get("model_ema_force_cpu")):
        return None
    # train.py validates at the size of training, whatever the network's test size, and crops the middle.
    cfg = model.pretrained_cfg
    return Figure(label, round(float(metric), 3), cfg["input_size"][-1], cfg["crop_pct"])

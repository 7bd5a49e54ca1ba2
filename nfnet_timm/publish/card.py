"""Writes the model card (README.md) of a Hub repo, for people and for the Hub.

The text is in the template hub/card.md. This module fills it with the published numbers of hub/checkpoints.toml, the
recipe of nfnet_timm/recipes, and the facts about the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch.utils.flop_counter import FlopCounterMode

from nfnet_timm.installation import PLACE, pip_install
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.checkpoints import data_file, load_published, released_checkpoints
from nfnet_timm.publish.sources import Source
from nfnet_timm.publish.train_data import dataset_name, hub_id, path_name
from nfnet_timm.publish.train_run import shown_options
from nfnet_timm.recipes import recipe

__all__ = ["multiply_adds", "render_card"]

_TASK: dict[str, Any] = {"task_type": "image-classification", "task_name": "Image Classification"}


def render_card(source: Source, repo_id: str, license: str | None = None) -> str:
    """Return the text of the card of ``source`` for the repo ``repo_id``.

    Args:
        license: The licence of the weights, by its name on the Hub. A released checkpoint does not need it.
    Raises:
        ValueError: If the weights are the user's own and ``license`` is None, or if they are a released checkpoint
            with another licence.
    """
    published = load_published()
    name, model, cfg = source.architecture, source.model, source.model.pretrained_cfg
    released = released_checkpoints().get(source.checkpoint or "")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"--license {license!r}: expected the name of a licence on the Hub, such as apache-2.0, mit, cc-by-4.0 or "
            "other; https://huggingface.co/docs/hub/repositories-licenses lists them"
        )
    if released and license not in (None, released["license"]):
        raise ValueError(
            f"--license {license}: {source.checkpoint} was released under {released['license']}; leave the option out"
        )
    if not released and license is None:
        raise ValueError(f"no licence for {repo_id}: {_how_to_license(source)}")
    # Anybody can write a header. So a header is no reason to show published numbers or a recipe.
    figures = released if released and "top1" in released and source.identified_by != "header" else None
    plain = set(source.model_args) <= {"num_classes"}
    test_size = (cfg.get("test_input_size") or cfg["input_size"])[1:]
    results = _published(published["sources"], figures, test_size) if figures else _measured(source)
    results += _stated(source)
    on_the_hub = hub_id(_dataset(source))
    data = ModelCardData(
        license=released["license"] if released else license,
        library_name="timm",
        pipeline_tag="image-classification" if model.num_classes else "image-feature-extraction",
        tags=["timm", "transformers", "nfnet-timm", "normalizer-free", "pytorch"],
        datasets=[released["dataset"]] if released else [on_the_hub] if on_the_hub else None,
        base_model=_base_model(source),
        model_name=repo_id.split("/")[-1],
        eval_results=results or None,
    )
    # If timm has a repo of the released weights, such as timm/dm_nfnet_f0.dm_in1k, it has the same network.
    timm_repo = VARIANTS[name].hf_hub_id
    variant_size = (VARIANTS[name].test_size,) * 2
    text = ModelCard.from_template(
        data,
        template_path=str(data_file("card.md")),
        repo_id=repo_id,
        install=f"# {PLACE}\n{pip_install()}",
        title=VARIANTS[name].title if plain else f"a relative of {VARIANTS[name].title}, with other widths or depths",
        architecture=name,
        arguments=_escaped(", ".join(f"{k}={v!r}" for k, v in source.model_args.items() if k != "num_classes")),
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=multiply_adds(name) if plain and test_size == variant_size else None,
        train_size=_by(cfg["input_size"][1:]),
        test_size=_by(test_size),
        test_shape=", ".join(map(str, (model.in_chans, *test_size))),
        num_classes=model.num_classes,
        embedding_shape=_embedding_shape(source, test_size),
        in_chans=model.in_chans,
        image_mode={1: "L", 3: "RGB", 4: "RGBA"}.get(model.in_chans),
        label_names=[_escaped(label) for label in source.label_names or []],
        paper=VARIANTS[name].paper_ids.removeprefix("arXiv:"),
        results=[
            (_escaped(r.metric_name), r.metric_value, _escaped(f"{r.dataset_name} {r.dataset_split or ''}"))
            for r in results
        ],
        plain_timm=timm_repo.split("/")[1].split(".")[0] if plain and timm_repo else None,
        released=released,
        identified_by=source.identified_by,
        computed=source.computed,
        metadata={key: _escaped(value) for key, value in source.metadata.items()},
        sources=published["sources"],
        licence=license,
        recipe=_recipe(name) if figures else None,
        training={option: _escaped(value) for option, value in shown_options(source.training).items()},
        script=_escaped(source.training.get("script", "timm's train.py")),
        ema=source.ema,
        epochs=_epochs(source),
        measured=source.accuracy is not None,
    )
    return f"{str(text).rstrip()}\n"


def multiply_adds(name: str) -> float:
    """Return the multiply-adds of the network ``name`` for one image of its test size, in billions.

    Counts convolutions and matrix products only, as papers do. Runs on the meta device, so nothing is computed.
    """
    model, size = timm.create_model(name, device="meta").eval(), VARIANTS[name].test_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


def _escaped(value: Any) -> str:
    """Return a value as text without Markdown or HTML syntax. Anybody may have written the value."""
    return re.sub(r"[&<>|`*~\[\]\\]", lambda found: f"&#{ord(found[0])};", _plain(str(value)))


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _embedding_shape(source: Source, size: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the embeddings of two images, which the card's code prints."""
    arguments = {**source.model_args, "num_classes": 0}
    model: Any = timm.create_model(source.architecture, device="meta", **arguments).eval()
    return tuple(model(torch.empty(2, model.in_chans, *size, device="meta")).shape)


def _published(sources: dict[str, str], released: dict[str, Any], size: Sequence[int]) -> list[EvalResult]:
    measured = {
        "published": ("", sources["source"], "https://arxiv.org/abs/2102.06171"),
        "measured by timm": (
            "timm_",
            sources["timm_source"],
            "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv",
        ),
    }
    return [
        EvalResult(
            **_TASK,
            dataset_type="imagenet-1k",
            dataset_name="ImageNet-1k",
            dataset_config=how,  # results with the same configuration have the same source
            dataset_split="validation",
            dataset_args={"resolution": _resolution(size)},
            metric_type="accuracy",
            metric_name=f"{label} accuracy in percent at {_resolution(size)} pixels, {how}",
            metric_value=released[prefix + key],
            source_name=source,
            source_url=url,
        )
        for how, (prefix, source, url) in measured.items()
        for label, key in (("Top-1", "top1"), ("Top-5", "top5"))
    ]


def _resolution(size: Sequence[int]) -> int | str:
    """Return one number for a square, else "height x width"."""
    return size[0] if size[0] == size[1] else _by(size)


def _measured(source: Source) -> list[EvalResult]:
    accuracy = source.accuracy
    if accuracy is None:
        return []
    measured_by: dict[str, Any] = {
        "source_name": f"timm's train.py{_epochs(source)}",
        "source_url": "https://github.com/huggingface/pytorch-image-models/blob/main/train.py",
    }
    resolution = _resolution(accuracy.size)
    return [
        EvalResult(
            **_TASK,
            dataset_type=hub_id(_dataset(source)) or "imagefolder",
            dataset_name=_dataset(source),
            dataset_split=_plain(source.training.get("val_split") or "validation"),
            dataset_args={"resolution": resolution, "crop_pct": accuracy.crop_pct},
            metric_type="accuracy",
            metric_name=f"{accuracy.label} accuracy in percent at {resolution} pixels, measured in training",
            metric_value=accuracy.value,
            **({} if "script" in source.training else measured_by),
        )
    ]


def _stated(source: Source) -> list[EvalResult]:
    """Return the figures that the owner states."""
    return [
        EvalResult(
            **_TASK,
            dataset_type=hub_id(_dataset(source)) or "imagefolder",
            dataset_name=_dataset(source),
            metric_type=_plain(name),
            metric_name=f"{_plain(name)}, as stated by the owner",
            metric_value=value,
        )
        for name, value in source.metrics.items()
    ]


def _dataset(source: Source) -> str:
    """Return the name of the owner's dataset, without the path if it is a folder."""
    name = source.dataset or dataset_name(source.training) or "images of the owner"
    is_path = name.startswith(("/", "~", ".")) or PureWindowsPath(name).drive or Path(name).exists()
    return _plain((path_name(name) or "images of the owner") if is_path else name)


def _plain(text: str) -> str:
    """Return ``text`` in one line, without characters that UTF-8 cannot encode."""
    return " ".join(text.split()).encode(errors="replace").decode()


def _epochs(source: Source) -> str:
    """Return after how many epochs of a run the weights were saved, such as " after 3 epochs"; "" if unknown."""
    done = None if source.epoch is None else source.epoch + 1  # train.py counts from 0
    return "" if done is None else f" after {done} epoch{'s' if done > 1 else ''}"


def _base_model(source: Source) -> str | None:
    """Return the repo of the initial weights of a run of train.py; None if its options do not name one."""
    others = source.training.get("pretrained_path") or source.training.get("initial_checkpoint")
    if not source.training.get("pretrained") or others:
        return None
    place, _, repo = str(source.training["model"]).partition(":")
    if repo:
        return repo.split("@")[0] if place in ("hf-hub", "hf_hub") else None
    return VARIANTS[source.architecture].hf_hub_id


def _recipe(name: str) -> dict[str, Any]:
    """Return the recipe of a network, with the batch size and the learning rate of the authors."""
    values = yaml.safe_load(recipe(name))
    batch = values["batch_size"] * values["grad_accum_steps"] * 8  # for 8 processes, as the recipe says
    return {**values, "batch": batch, "lr": values["lr_base"] * batch / values["lr_base_size"]}


def _how_to_license(source: Source) -> str:
    """Return the advice for weights without a known licence: pass --license, or --checkpoint."""
    own = "choose one for your own weights, for instance --license apache-2.0"
    claims = [name for name in released_checkpoints() if source.may_be(name)]
    if not claims:
        return own
    return (
        f"the hash of the weights is not that of a released file; {own}. If they are a released checkpoint, pass "
        f"--checkpoint {' or '.join(claims)}"
    )

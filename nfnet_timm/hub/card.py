"""Model cards: what a Hub repo's README.md says of the weights beside it, for people and for the Hub.

All text is in hub/card.md, which this fills: with the published numbers of hub/checkpoints.toml, the recipe of
nfnet_timm/recipes, and what is known of the model.
"""

from __future__ import annotations

from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nfnet_timm.hub.known_model import KnownModel
from nfnet_timm.hub.published import data_file, load_published, released_checkpoints
from nfnet_timm.installation import PLACE, pip_install
from nfnet_timm.models.multiply_adds import multiply_adds
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.recipes import recipe

__all__ = ["render_card"]

# Options of train.py that tell how a network was trained; paths and names of machines are none of a card's business.
_TRAINING = (
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

# Options that say nothing where the other is off.
_NOTHING_WITHOUT = {"clip_mode": "clip_grad", "amp_dtype": "amp", "model_ema_decay": "model_ema"}


def render_card(known: KnownModel, repo_id: str, license: str | None = None) -> str:
    """Return the card of ``known`` as it will stand in ``repo_id``.

    Args:
        license: The Hub's name of the licence of the weights; of a released checkpoint it is known.
    Raises:
        ValueError: If the weights are a user's own and no licence is given, or are not and another one is.
    """
    published = load_published()
    name, model, cfg = known.architecture, known.model, known.model.pretrained_cfg
    released = released_checkpoints().get(known.checkpoint or "")
    if released is not None and license not in (None, released["license"]):
        raise ValueError(
            f"--license {license}: {known.checkpoint} was released under {released['license']}; leave the option out"
        )
    if released is None and license is None:
        raise ValueError(f"no licence for {repo_id}: {_what_it_takes(known)}")
    plain = set(known.model_args) <= {"num_classes"}
    test_size = (cfg.get("test_input_size") or cfg["input_size"])[-1]
    dataset = _dataset(known)
    if released is not None:
        results = _published(published["sources"], released, test_size) if "top1" in released else []
    else:
        results = _measured(known, dataset)
    data = ModelCardData(
        license=released["license"] if released else license,
        library_name="timm",
        pipeline_tag="image-classification" if model.num_classes else "image-feature-extraction",
        tags=["timm", "transformers", "nfnet-timm", "normalizer-free", "pytorch"],
        datasets=[released["dataset"]] if released else [dataset] if dataset and "/" in dataset else None,
        base_model=_base_model(known),
        model_name=repo_id.split("/")[-1],
        eval_results=results or None,
    )
    # timm has the same network where the released weights are in one of its repos, timm/dm_nfnet_f0.dm_in1k.
    timms = VARIANTS[name].hf_hub_id
    text = ModelCard.from_template(
        data,
        template_path=str(data_file("card.md")),
        repo_id=repo_id,
        install=f"# {PLACE}\n{pip_install()}",
        title=VARIANTS[name].title if plain else f"a relative of {VARIANTS[name].title}, with other widths or depths",
        architecture=name,
        arguments=", ".join(f"{key}={value!r}" for key, value in known.model_args.items() if key != "num_classes"),
        parameters=sum(p.numel() for p in model.parameters()),
        multiply_adds=multiply_adds(name) if plain and test_size == VARIANTS[name].test_size else None,
        train_size=cfg["input_size"][-1],
        test_size=test_size,
        num_classes=model.num_classes,
        num_features=model.num_features,
        in_chans=cfg["input_size"][0],
        image_mode={1: "L", 3: "RGB", 4: "RGBA"}.get(cfg["input_size"][0]),
        label_names=known.label_names,
        paper=VARIANTS[name].paper_ids.removeprefix("arXiv:"),
        accuracy=_accuracy(results),
        plain_timm=timms.split("/")[1].split(".")[0] if plain and timms else None,
        released=released,
        proven=known.proven,
        metadata=known.metadata,
        sources=published["sources"],
        licence=license,
        recipe=_recipe(name) if released and "top1" in released else None,
        training=_training(known),
        script=known.training.get("script", "timm's train.py"),
        ema=known.ema,
        epoch=known.epoch,
        measured=known.figure is not None,
    )
    return f"{str(text).rstrip()}\n"


def _published(sources: dict[str, str], released: dict[str, Any], size: int) -> list[EvalResult]:
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
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type="imagenet-1k",
            dataset_name="ImageNet-1k",
            dataset_config=how,  # results of one configuration share their source
            dataset_split="validation",
            dataset_args={"resolution": size},
            metric_type="accuracy",
            metric_name=f"{label} accuracy in percent at {size} pixels, {how}",
            metric_value=released[prefix + key],
            source_name=source,
            source_url=url,
        )
        for how, (prefix, source, url) in measured.items()
        for label, key in (("Top-1", "top1"), ("Top-5", "top5"))
    ]


def _measured(known: KnownModel, dataset: str | None) -> list[EvalResult]:
    figure = known.figure
    if figure is None:
        return []
    source: dict[str, Any] = {
        "source_name": f"timm's train.py, after epoch {known.epoch}",
        "source_url": "https://github.com/huggingface/pytorch-image-models/blob/main/train.py",
    }
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset if dataset and "/" in dataset else "imagefolder",
            dataset_name=dataset or "a folder of images",
            dataset_split=known.training.get("val_split") or "validation",
            dataset_args={"resolution": figure.pixels, "crop_pct": figure.crop_pct},
            metric_type="accuracy",
            metric_name=f"{figure.label} accuracy in percent at {figure.pixels} pixels, measured in training",
            metric_value=figure.value,
            **({} if "script" in known.training else source),
        )
    ]


def _accuracy(results: list[EvalResult]) -> list[dict[str, Any]]:
    """Return a row of the table of details for each way of measuring."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        name = str(result.metric_name)
        size = (result.dataset_args or {})["resolution"]
        where = f"{result.dataset_name} {result.dataset_split} at {size} x {size} pixels"
        row = rows.setdefault(name.split(", ")[1], {"label": f"accuracy, {name.split(', ')[1]}", "where": where})
        row["value" if name.startswith("Top-1") else "top5"] = result.metric_value
    return list(rows.values())


def _dataset(known: KnownModel) -> str | None:
    """Return the name of the data that train.py was given: on the Hub, in its library, or of its folder."""
    library, _, name = (known.training.get("dataset") or "").partition("/")
    if library in ("hfds", "hfids"):
        return name
    if library in ("torch", "tfds") and name not in ("folder", "image_folder"):
        return name.replace("/", " ")  # a name with a stroke is one of the Hub's
    folder = str(known.training.get("data_dir") or known.training.get("data") or "")
    return folder.rstrip("/").split("/")[-1] or None


def _base_model(known: KnownModel) -> str | None:
    """Return the repo of the weights that a run of train.py started from, as far as its options tell."""
    if not known.training.get("pretrained") or known.training.get("pretrained_path"):
        return None
    place, _, repo = str(known.training["model"]).partition(":")
    if repo:
        return repo.split("@")[0] if place in ("hf-hub", "hf_hub") else None
    return VARIANTS[known.architecture].hf_hub_id


def _recipe(name: str) -> dict[str, Any]:
    """Return the recipe of a network, with what it comes to for the authors' batch."""
    values = yaml.safe_load(recipe(name))
    batch = values["batch_size"] * values["grad_accum_steps"] * 8  # processes, as the recipe says
    return {**values, "batch": batch, "lr": values["lr_base"] * batch / values["lr_base_size"]}


def _training(known: KnownModel) -> dict[str, Any]:
    """Return the options of a run of train.py that say how it trained."""
    unused = {option for option, other in _NOTHING_WITHOUT.items() if not known.training.get(other)}
    return {
        option: known.training[option]
        for option in _TRAINING
        if option not in unused and known.training.get(option) not in (None, False, "", {})
    }


def _what_it_takes(known: KnownModel) -> str:
    """Return what makes a card of weights that are not recognised possible: a licence, or a claim."""
    own = "weights of your own have the one that you choose; pass, for instance, --license apache-2.0"
    claims = [name for name in released_checkpoints() if name.split(".")[0] == known.architecture]
    if not claims or set(known.model_args) - {"num_classes"}:
        return own
    return f"by its hash this is no released file; {own}. If you know better: --checkpoint {' or '.join(claims)}"

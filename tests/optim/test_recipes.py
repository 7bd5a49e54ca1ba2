"""The recipes use options of timm's train.py, and have the values of the authors' code."""

import json
import math
import os
import runpy
import sys

import golden
import pytest
import torch
import yaml
from timm.data.auto_augment import rand_augment_transform
from timm.scheduler import create_scheduler_v2

from nfnet_timm import recipes
from nfnet_timm.cli import main
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.recipes import recipe

RECIPES = {name: yaml.safe_load(recipe(name)) for name in recipes.RECIPES}
# Source: deepmind-research/nfnets/base.py. Dropout, and the magnitude of RandAugment.
DROP = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)
RANDAUGMENT = (5, 10, 10, 15, 15, 15, 15, 15)
# The names of the options of train.py (see data/README.md).
OPTIONS = set(json.loads((golden.DATA / "train_script_options.json").read_text()))


@pytest.mark.parametrize("i", range(8))
def test_values_equal_the_published_ones(i):
    values = RECIPES[f"nfnet_f{i}"]
    assert values["model"] == f"nfnet_f{i}"
    assert values["input_size"] == [3, *2 * [VARIANTS[f"nfnet_f{i}"].train_size]]
    assert values["batch_size"] * values["grad_accum_steps"] * 8 == 4096
    assert (values["drop"], values["drop_path"], values["smoothing"]) == (DROP[i], 0.25, 0.1)
    assert (values["opt"], values["opt_kwargs"]) == ("agc-sgd", {"clip_factor": 0.01, "clip_eps": 0.001})
    assert (values["momentum"], values["weight_decay"]) == (0.9, 2e-5)
    transform = rand_augment_transform(values["aa"], {})
    assert transform.num_layers == 4
    for op in transform.ops:
        assert (op.magnitude, op.magnitude_std) == (RANDAUGMENT[i], 0)
        assert (op.magnitude_max or 10) >= op.magnitude


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet"])
def test_the_schedule_equals_the_authors_at_each_step(name):
    values = RECIPES[name]
    batch = values["batch_size"] * values.get("grad_accum_steps", 1) * 8
    peak = values["lr_base"] * batch / values["lr_base_size"]
    assert peak == 0.1 * batch / 256
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=peak)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        values["sched"],
        num_epochs=values["epochs"],
        step_on_epochs=not values["sched_on_updates"],
        updates_per_epoch=10,
        **{key: values[key] for key in ("warmup_epochs", "warmup_prefix", "warmup_lr", "min_lr")},
    )
    assert epochs == (360 if name == "nfnet_f0" else 90)
    warmup, steps = 50, 10 * epochs
    for step in range(steps):
        scheduler.step_update(step)
        # deepmind-research/nfnets/optim.py, WarmupCosineDecay
        cosine = 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        expected = peak * step / warmup if step <= warmup else cosine
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-9)


def test_the_command_prints_a_recipe(capsys):
    assert main(["recipe", "nfnet_f3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == RECIPES["nfnet_f3"]
    assert main(["recipe", "nfnet_f9"]) == 1
    assert "'nfnet_f9': expected one of nfnet_f0" in capsys.readouterr().err


def test_every_key_is_an_option_of_the_train_script():
    assert set().union(*RECIPES.values()) <= OPTIONS


@pytest.mark.skipif("TIMM_TRAIN_SCRIPT" not in os.environ, reason="TIMM_TRAIN_SCRIPT, the path of train.py, is unset")
@pytest.mark.parametrize("name", RECIPES)
def test_the_real_parser_accepts_the_recipe(name, monkeypatch, tmp_path):
    script = os.environ["TIMM_TRAIN_SCRIPT"]
    (tmp_path / "recipe.yaml").write_text(recipe(name))
    monkeypatch.setattr(sys, "argv", [script, "--config", str(tmp_path / "recipe.yaml"), "--data-dir", "x"])
    module = runpy.run_path(script, run_name="train")
    args, _ = module["_parse_args"]()
    for key, value in RECIPES[name].items():
        assert getattr(args, key) == value
    assert args.lr is None
    assert {action.dest for action in module["parser"]._actions} == OPTIONS | {"help"}

"""timm's private functions are there, and mean what we take them for. One that is gone is named by its test."""

import json

import timm
import torch
from timm.utils import dispatch_clip_grad

from nfnet_timm.layers import timm_private


def test_feature_indices_are_counted_from_the_end_too():
    assert timm_private.take_feature_indices(5, [-1, 0]) == ([4, 0], 4)
    assert timm_private.take_feature_indices(5, 2) == ([3, 4], 4)
    assert timm_private.take_feature_indices(3, None) == ([0, 1, 2], 2)


def test_a_written_config_is_what_timm_reads(tiny, tmp_path):
    model = tiny()
    timm_private.save_config(model, tmp_path / "config.json", {"extra": 1}, {"depths": [1, 1]})
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["architecture"], written["extra"], written["num_classes"]) == ("nfnet_f0", 1, model.num_classes)
    architecture, arguments, cfg = timm_private.saved_config(f"local-dir:{tmp_path}")
    assert (architecture, arguments["depths"], cfg["input_size"]) == ("nfnet_f0", [1, 1], (3, 192, 192))


def test_a_name_without_a_place_is_the_architecture():
    assert timm_private.saved_config("nfnet_f0.dm_in1k") == ("nfnet_f0", {}, {})


def test_the_registry_is_the_one_that_timm_builds_optimizers_from():
    registry = timm_private.optimizer_registry()
    assert registry.get_optimizer_info("agc-sgd").opt_class is timm.optim.get_optimizer_class("agc-sgd", False)


def test_dispatch_clip_grad_looks_for_its_clipping_where_we_say(monkeypatch):
    called = []
    monkeypatch.setattr(timm_private.clip_grad_module(), "adaptive_clip_grad", lambda *_, **__: called.append(True))
    dispatch_clip_grad([torch.nn.Parameter(torch.ones(1))], 0.01, mode="agc")
    assert called == [True]

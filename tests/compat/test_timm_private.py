"""timm's private functions are there, and mean what we take them for. One that is gone is named by its test."""

import json

import timm

from nfnet_timm.compat import timm as timm_private


def test_feature_indices_are_counted_from_the_end_too():
    assert timm_private.take_feature_indices(5, [-1, 0]) == ([4, 0], 4)
    assert timm_private.take_feature_indices(5, 2) == ([3, 4], 4)
    assert timm_private.take_feature_indices(3, None) == ([0, 1, 2], 2)


def test_a_written_config_is_what_timm_reads(tiny, tmp_path):
    model = tiny()
    timm_private.save_config(model, tmp_path / "config.json", {"extra": 1}, {"depths": [1, 1]})
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["architecture"], written["extra"], written["num_classes"]) == ("nfnet_f0", 1, model.num_classes)
    assert (written["model_args"]["depths"], written["pretrained_cfg"]["input_size"]) == ([1, 1], [3, 192, 192])


def test_a_config_is_where_the_name_says(tmp_path):
    assert timm_private.config_file(f"local-dir:{tmp_path}") == tmp_path / "config.json"
    assert timm_private.config_file("nfnet_f0.dm_in1k") is None


def test_a_split_is_read_from_its_folder_or_that_of_a_synonym_or_from_all(tmp_path):
    (tmp_path / "val").mkdir()
    splits = {split: timm_private.split_folder(str(tmp_path), split) for split in ("val", "validation", "train")}
    assert splits == {"val": f"{tmp_path}/val", "validation": f"{tmp_path}/val", "train": str(tmp_path)}


def test_the_registry_is_the_one_that_timm_builds_optimizers_from():
    registry = timm_private.optimizer_registry()
    assert registry.get_optimizer_info("agc-sgd").opt_class is timm.optim.get_optimizer_class("agc-sgd", False)

"""What is published of a run of train.py is the network that it trained, with its own figure, and names by consent."""

import argparse
import json
import re
from pathlib import Path

import golden
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.data import create_transform, resolve_model_data_config

from nfnet_timm.cli import main

BUILT = Path("hub-repos/tiny")
# What train.py has where an option is not given, as far as a network, its input or its figure depend on it.
DEFAULTS = {
    "model": "nfnet_f0", "pretrained": False, "pretrained_path": None, "initial_checkpoint": "", "num_classes": 10,
    "gp": None, "img_size": None, "in_chans": None, "input_size": None, "crop_pct": None, "mean": None, "std": None,
    "interpolation": "", "drop": 0.0, "drop_path": None, "drop_block": None, "bn_momentum": None, "bn_eps": None,
    "torchscript": False, "data": None, "data_dir": None, "dataset": "", "train_split": "train",
    "val_split": "validation", "class_map": "", "eval_metric": "top1", "model_ema": False, "model_ema_force_cpu": False,
    "tta": 0, "opt": "agc-sgd", "lr": 0.1, "epochs": 3,
}  # fmt: skip


def built_by_train_script(args):
    """Build as train.py does at commit aa4b585, and give every parameter a value that shows."""
    in_chans = 3
    if args["in_chans"] is not None:
        in_chans = args["in_chans"]
    elif args["input_size"] is not None:
        in_chans = args["input_size"][0]
    torch.manual_seed(0)
    model = timm.create_model(
        args["model"],
        in_chans=in_chans,
        num_classes=args["num_classes"],
        drop_rate=args["drop"],
        drop_path_rate=args["drop_path"],
        drop_block_rate=args["drop_block"],
        global_pool=args["gp"],
        bn_momentum=args["bn_momentum"],
        bn_eps=args["bn_eps"],
        scriptable=args["torchscript"],
        checkpoint_path=args["initial_checkpoint"],
        **args["model_kwargs"],
    )
    for name, p in model.named_parameters():
        if name.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.7)
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.fixture
def publish(tmp_path, monkeypatch, capsys):
    """Save a checkpoint of a run with these options and publish it; return status, output, errors and the network."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, ema=False, metric=87.5, state_dict=None, **options):
        args = {**DEFAULTS, "model_kwargs": dict(golden.TINY, num_classes=None), **options}
        args["model_kwargs"].pop("num_classes", None)
        model = built_by_train_script(args)
        checkpoint = {"epoch": 2, "arch": args["model"], "version": 2, "args": argparse.Namespace(**args)}
        checkpoint |= {"metric": metric, "optimizer": {}, "state_dict": state_dict or model.state_dict()}
        if ema:
            checkpoint["state_dict_ema"] = model.state_dict()
        torch.save(checkpoint, "run.pth.tar")
        status = main(["publish", "run.pth.tar", "org/tiny", "--license", "mit", "--dry-run", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err, model

    return run


NETWORKS = {
    "as it is": {},
    "max": {"gp": "max"},
    "avgmax": {"gp": "avgmax"},
    "catavgmax": {"gp": "catavgmax"},
    "grey": {"in_chans": 1, "mean": (0.5,), "std": (0.25,)},
    "grey by its size": {"input_size": [1, 32, 32], "mean": (0.5,), "std": (0.25,)},
    "grey, with ImageNet's mean": {"input_size": [1, 32, 32]},
    "four channels": {"in_chans": 4},
    "another size": {"img_size": 96},
    "oblong": {"input_size": [3, 64, 96]},
    "one class": {"num_classes": 1},
    "dropout": {"drop": 0.2, "drop_path": 0.1},
    "another activation": {"model_kwargs": {**golden.TINY, "act_layer": "silu"}},
    "another alpha": {"model_kwargs": {**golden.TINY, "alpha": 0.5}},
    "dilated": {"model_kwargs": {**golden.TINY, "output_stride": 16}},
    "recomputed": {"model_kwargs": {**golden.TINY, "recompute_acts": True}},
    "without squeeze-excite": {"model_kwargs": {**golden.TINY, "rd_ratio": 0.0}},
    "a tag": {"model": "nfnet_f0.dm_in1k"},
    "another network": {"model": "dm_nf_regnet_b0", "model_kwargs": {"depths": (1, 1, 1, 1)}, "gp": "max"},
    "all at once": {"gp": "avgmax", "input_size": [1, 48, 48], "mean": (0.1,), "std": (0.3,), "num_classes": 4},
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_it_is_the_network_that_train_script_built(publish, options):
    status, _, error, model = publish(**options)
    assert status == 0, error
    loaded = timm.create_model(f"local-dir:{BUILT}", pretrained=True).eval()
    x = torch.randn(2, model.in_chans, 64, 64)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert loaded.in_chans == model.in_chans
    assert loaded.num_classes == model.num_classes
    arguments = json.loads((BUILT / "config.json").read_text()).get("model_args", {})
    assert not {"num_classes", "recompute_acts", "drop_rate", "drop_path_rate"} & set(arguments)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_its_preprocessing_is_the_runs(publish, options):
    _, _, _, model = publish(**options)
    expected = timm.data.resolve_data_config({**DEFAULTS, **options}, model=model)
    loaded = timm.create_model(f"local-dir:{BUILT}", pretrained=True)
    found = resolve_model_data_config(loaded)
    chans = model.in_chans
    assert tuple(found["input_size"]) == (chans, *expected["input_size"][1:])
    for key in ("interpolation", "crop_pct"):
        assert found[key] == expected[key]
    for key in ("mean", "std"):  # as timm's loader adapts them
        values = expected[key]
        adapted = values if len(values) == chans else (sum(values) / len(values),) * chans
        assert found[key] == pytest.approx(adapted)
    if "input_size" in options or "img_size" in options:
        test_size = resolve_model_data_config(loaded, use_test_size=True)["input_size"]
        assert tuple(test_size) == tuple(found["input_size"])


def test_the_code_of_the_card_of_a_grey_network_runs(publish, capsys):
    from PIL import Image

    publish(input_size=[1, 32, 32], mean=(0.5,), std=(0.25,), val_split="")
    Image.new("RGB", (50, 40), "red").save("photo.jpg")
    text = (BUILT / "README.md").read_text().replace("hf-hub:org/tiny", f"local-dir:{BUILT}")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
    assert "torch.Size([2, 192])" in capsys.readouterr().out


def test_a_network_that_train_script_would_not_build_is_refused(publish):
    publish()
    checkpoint = torch.load("run.pth.tar", weights_only=False)
    checkpoint["args"].model_kwargs = {**golden.TINY, "no_such_argument": 3}
    torch.save(checkpoint, "run.pth.tar")
    assert main(["publish", "run.pth.tar", "org/tiny", "--license", "mit", "--dry-run"]) == 1


def test_a_run_that_began_with_a_published_folder_is_published(publish, tmp_path, capsys):
    """What publish makes, ``local-dir:`` and ``hf-hub:``, is what people go on from."""
    publish("--out", "base", gp="max", input_size=[3, 64, 64])
    status, _, error, model = publish(model="local-dir:base", model_kwargs={}, num_classes=7, gp=None)
    assert (status, error) == (0, "")
    loaded = timm.create_model(f"local-dir:{BUILT}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert loaded.head.global_pool.pool_type == "max"
    assert tuple(resolve_model_data_config(loaded)["input_size"]) == (3, 64, 64)


def test_a_run_whose_beginning_is_gone_is_one_line(publish, capsys):
    publish("--out", "base")
    assert publish(model="local-dir:base", model_kwargs={}, num_classes=7)[0] == 0
    Path("base/config.json").unlink()
    assert main(["publish", "run.pth.tar", "org/tiny", "--license", "mit", "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert "it was trained from 'local-dir:base', whose config.json is not to be had" in error
    assert error.count("\n") == 1


def test_a_run_that_began_on_the_hub_names_its_beginning(hub, publish, monkeypatch, capsys):
    publish()
    assert main(["publish", "run.pth.tar", "org/base", "--license", "mit", "--out", "base"]) == 0
    capsys.readouterr()
    status, _, error, _ = publish(
        "--overwrite", model="hf-hub:org/base", model_kwargs={}, num_classes=3, pretrained=True
    )
    assert status == 0, error
    assert ModelCard.load(BUILT / "README.md").data.base_model == "org/base"


# --- figures


FIGURES = {
    "plain": ({}, "Top-1 accuracy in percent at 192 pixels, measured in training"),
    "top 5": ({"eval_metric": "top5"}, "Top-5 accuracy in percent at 192 pixels, measured in training"),
    "another size": ({"input_size": [3, 64, 64]}, "Top-1 accuracy in percent at 64 pixels, measured in training"),
    "the average": ({"ema": True, "model_ema": True}, "Top-1 accuracy in percent at 192 pixels, measured in training"),
    "the average on the CPU": ({"ema": True, "model_ema": True, "model_ema_force_cpu": True}, None),
    "no validation": ({"val_split": "", "metric": 2.31}, None),
    "the loss": ({"eval_metric": "loss", "metric": 2.31}, None),
    "augmented": ({"tta": 3}, None),
    "nothing measured": ({"metric": None}, None),
}


@pytest.mark.parametrize(("options", "name"), FIGURES.values(), ids=FIGURES)
def test_a_figure_is_on_the_card_only_with_what_it_is_a_figure_of(publish, options, name):
    status, _, error, _ = publish(**options)
    assert status == 0, error
    card = ModelCard.load(BUILT / "README.md")
    results = card.data.eval_results or []
    assert [result.metric_name for result in results] == ([name] if name else [])
    assert ("% top-" in card.text) == bool(name)
    assert ("The run measured no accuracy of these." in card.text) == (name is None)
    if name:
        pixels = int(re.search(r"at (\d+) pixels", name)[1])
        assert results[0].dataset_args == {"resolution": pixels, "crop_pct": 0.9}
        assert f"at {pixels} x {pixels} pixels |" in card.text
        assert results[0].metric_value == 87.5


# --- names of classes


def folders(*path, names="abcdefghij"):
    for name in names:
        Path(*path, name).mkdir(parents=True)


def names_of():
    return json.loads((BUILT / "config.json").read_text()).get("label_names")


@pytest.mark.parametrize("dataset", ["hfds/org/data", "torch/cifar10", "tfds/mnist", "hfids/org/data", "wds/x"])
@pytest.mark.parametrize("data_dir", [None, "data"])
def test_of_a_data_set_that_is_no_folder_of_folders_no_folder_names_the_classes(publish, dataset, data_dir):
    folders("train")
    folders("data", "train")
    status, out, error, _ = publish("--yes", dataset=dataset, data_dir=data_dir)
    assert status == 0, error
    assert "class names" not in out
    assert names_of() is None


def test_without_a_data_folder_the_folder_one_stands_in_names_nothing(publish):
    folders("train")
    _, out, _, _ = publish("--yes")
    assert "class names" not in out


def test_names_that_were_found_are_shown_with_their_place_and_need_a_yes(publish, monkeypatch):
    folders("data", "train")
    _, out, _, _ = publish(data_dir="data")
    assert "class names found in data/train: a, b, c, d, e, f, g, h, i, j" in out
    assert "they are left out; --yes publishes them, --class-names FILE others" in out
    assert names_of() is None
    _, out, _, _ = publish("--yes", "--overwrite", data_dir="data")
    assert "class names from data/train: a, b" in out
    assert names_of() == list("abcdefghij")
    Path("names.txt").write_text("\n".join("klmnopqrst"))
    _, out, _, _ = publish("--class-names", "names.txt", "--overwrite", data_dir="data")
    assert "class names from names.txt: k, l" in out
    assert names_of() == list("klmnopqrst")


def test_a_file_that_a_checkpoint_names_is_shown_and_not_published_without_a_yes(publish):
    """The checkpoint may be somebody else's, and the file a list of anything."""
    Path("secrets.txt").write_text("\n".join(f"password{i}" for i in range(10)))
    _, out, _, _ = publish(class_map="secrets.txt")
    assert "class names found in secrets.txt: password0" in out
    assert not any(b"password" in path.read_bytes() for path in BUILT.iterdir())


@pytest.mark.parametrize("answer", ["y", "yes", "n", "", None])
def test_a_question_is_answered_by_yes_alone(publish, monkeypatch, answer):
    folders("data", "train")

    def reply(question):
        assert question == "Publish them? [y/N] "
        if answer is None:
            raise EOFError  # Ctrl-D
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", reply)
    status, _, error, _ = publish(data_dir="data")
    assert (status, error) == (0, "")
    assert (names_of() is not None) == (answer in ("y", "yes"))


@pytest.mark.parametrize(
    ("options", "name", "on_the_hub"),
    [
        ({"dataset": "torch/cifar10", "data_dir": "./data"}, "cifar10", None),
        ({"dataset": "tfds/oxford_flowers102", "data_dir": "./data"}, "oxford_flowers102", None),
        ({"dataset": "hfds/org/birds"}, "org/birds", ["org/birds"]),
        ({"data_dir": "/home/somebody/birds/"}, "birds", None),
        ({"data": "birds"}, "birds", None),
        ({"dataset": "torch/image_folder", "data_dir": "birds"}, "birds", None),
        ({}, "a folder of images", None),
    ],
)
def test_the_data_set_on_the_card_is_the_runs(publish, options, name, on_the_hub):
    publish(**options)
    card = ModelCard.load(BUILT / "README.md")
    assert card.data.eval_results[0].dataset_name == name
    assert card.data.datasets == on_the_hub
    assert "/home/somebody" not in str(card)


def test_every_transform_of_a_published_config_can_be_made(publish):
    publish(input_size=[1, 32, 32])
    loaded = timm.create_model(f"local-dir:{BUILT}", pretrained=True)
    assert create_transform(**resolve_model_data_config(loaded)) is not None


def test_the_docs_say_of_each_option_of_train_py_what_becomes_of_it():
    rows = [line for line in (golden.ROOT / "docs" / "weights.md").read_text().splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == json.loads((golden.DATA / "train_script_options.json").read_text())

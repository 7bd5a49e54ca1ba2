"""For a run of train.py, the published network, accuracy and class names are those of the run."""

import argparse
import html
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.data import create_dataset, create_transform, resolve_model_data_config

from nfnet_timm.formats.train_checkpoint import TrainCheckpoint
from nfnet_timm.publish.class_names import FoundNames, find_class_names
from nfnet_timm.publish.train_data import dataset_name, hub_id, images_of
from nfnet_timm.publish.train_run import Accuracy, accuracy_of

BUILT = Path("hub-repos/tiny")
SMALL = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 96), "group_size": 8}
# Default values in train.py of the options that affect the network, its input or its accuracy.
DEFAULTS = {
    "model": "nfnet_f0", "pretrained": False, "pretrained_path": None, "initial_checkpoint": "", "num_classes": 10,
    "gp": None, "img_size": None, "in_chans": None, "input_size": None, "crop_pct": None, "mean": None, "std": None,
    "interpolation": "", "drop": 0.0, "drop_path": None, "data": None, "data_dir": None, "dataset": "",
    "train_split": "train", "val_split": "validation", "class_map": "", "eval_metric": "top1", "model_ema": False,
    "model_ema_force_cpu": False, "tta": 0, "opt": "agc-sgd", "lr": 0.1, "epochs": 3,
}  # fmt: skip


def built_by_train_script(args):
    """Build a network as train.py does at commit aa4b585, and set all parameters to values that affect the output."""
    torch.manual_seed(0)
    model = timm.create_model(
        args["model"],
        in_chans=args["in_chans"] or (args["input_size"] or [3])[0],
        num_classes=args["num_classes"],
        drop_rate=args["drop"],
        drop_path_rate=args["drop_path"],
        global_pool=args["gp"],
        **args["model_kwargs"],
    )
    for name, p in model.named_parameters():
        if name.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.7)
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.fixture
def publish_run(publish):
    """Return a function that saves a checkpoint of a run with some options and publishes it.

    It returns the output and the network.
    """

    def run(*arguments, ema=False, metric=87.5, **options):
        args = {**DEFAULTS, "model_kwargs": dict(SMALL), **options}
        model = built_by_train_script(args)
        checkpoint = {"epoch": 2, "arch": args["model"], "version": 2, "args": argparse.Namespace(**args)}
        of_ddp = {
            f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()
        }  # and torch.compile
        checkpoint |= {"metric": metric, "optimizer": {}, "state_dict": of_ddp}
        if ema:
            checkpoint["state_dict"] = {name: torch.zeros_like(tensor) for name, tensor in of_ddp.items()}
            checkpoint["state_dict_ema"] = model.state_dict()
        torch.save(checkpoint, "run.pth.tar")
        status, out, error = publish("run.pth.tar", "--dry-run", *arguments)
        assert status == 0, error
        return out, model

    return run


NETWORKS = {
    "as it is": {"img_size": 96, "drop": 0.2, "drop_path": 0.1},
    "grey": {"in_chans": 1, "mean": (0.5,), "std": (0.25,), "num_classes": 1},
    "grey and oblong, with ImageNet's mean": {"input_size": [1, 32, 64], "gp": "catavgmax"},
    "four channels": {"in_chans": 4},
    "other arguments": {
        "model": "nfnet_f0.dm_in1k",
        "model_kwargs": {**SMALL, "act_layer": "silu", "alpha": 0.5, "output_stride": 16, "recompute_acts": True},
    },
    "another network": {"model": "dm_nf_regnet_b0", "model_kwargs": {"depths": (1, 1, 1, 1)}, "gp": "max"},
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_published_network_and_preprocessing_are_those_of_the_run(publish_run, options):
    _, model = publish_run(**options)
    loaded = timm.create_model(f"local-dir:{BUILT}", pretrained=True).eval()
    x = torch.randn(2, model.in_chans, 64, 64)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert loaded.in_chans == model.in_chans
    assert loaded.num_classes == model.num_classes
    arguments = json.loads((BUILT / "config.json").read_text()).get("model_args", {})
    assert not {"num_classes", "recompute_acts", "drop_rate", "drop_path_rate"} & set(arguments)
    expected = timm.data.resolve_data_config({**DEFAULTS, **options}, model=model)
    found = resolve_model_data_config(loaded)
    chans = model.in_chans
    assert tuple(found["input_size"]) == (chans, *expected["input_size"][1:])
    for key in ("interpolation", "crop_pct"):
        assert found[key] == expected[key]
    assert found["crop_mode"] == "center"  # train.py does not pass the network's own to its loader
    for key in ("mean", "std"):  # as timm's loader adapts them
        values = expected[key]
        adapted = values if len(values) == chans else (sum(values) / len(values),) * chans
        assert found[key] == pytest.approx(adapted)
    if "input_size" in options or "img_size" in options:
        test_size = resolve_model_data_config(loaded, use_test_size=True)["input_size"]
        assert tuple(test_size) == tuple(found["input_size"])
    assert create_transform(**found) is not None


@pytest.mark.parametrize(
    ("options", "embeddings"),
    [({"input_size": [1, 32, 32], "gp": "catavgmax"}, "(2, 384)"), ({"in_chans": 1, "img_size": 32}, "(2, 192)")],
)
def test_card_code_of_a_grey_network_runs_and_its_comments_are_right(publish_run, capsys, options, embeddings):
    from PIL import Image

    publish_run(**options)
    Image.new("RGB", (50, 40), "red").save("photo.jpg")
    text = (BUILT / "README.md").read_text().replace("hf-hub:org/tiny", f"local-dir:{BUILT}")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
    assert f"torch.Size([{embeddings.strip('()')}])" in capsys.readouterr().out
    assert f"print(vectors.shape)  # {embeddings}" in text
    assert "| image size | 32 x 32 pixels (from config.json) |" in text


def test_run_that_started_from_a_published_folder_is_published_while_the_folder_is_there(publish_run, refused):
    """Users fine-tune published models, by the prefixes ``local-dir:`` and ``hf-hub:``."""
    publish_run("--out", "base", gp="catavgmax", input_size=[3, 64, 64])
    _, model = publish_run(model="local-dir:base", model_kwargs={}, num_classes=7, gp=None)
    loaded = timm.create_model(f"local-dir:{BUILT}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert loaded.head.global_pool.pool_type == "catavgmax"
    assert tuple(resolve_model_data_config(loaded)["input_size"]) == (3, 64, 64)
    Path("base/config.json").unlink()
    BUILT.rename("first")
    assert "--model local-dir:base: its config.json cannot be read" in refused("run.pth.tar")


@pytest.mark.parametrize(("model", "repo"), [("hf-hub:org/base", "org/base"), ("nfnet_f0", "timm/dm_nfnet_f0.dm_in1k")])
def test_card_names_the_repo_and_the_options_that_a_run_started_from(hub, publish_run, publish, model, repo):
    publish_run()
    assert publish("run.pth.tar", "--out", "base", repo="org/base")[0] == 0
    kwargs = {} if model.startswith("hf-hub") else SMALL
    publish_run("--overwrite", model=model, model_kwargs=kwargs, num_classes=3, pretrained=True)
    card = ModelCard.load(BUILT / "README.md")
    assert card.data.base_model == repo
    assert "| `opt` | agc-sgd |" in card.text


def test_the_average_is_published_if_there_is_one(publish_run):
    out, _ = publish_run(metric=None)
    assert "weights: as trained; the checkpoint has no EMA" in out
    card = (BUILT / "README.md").read_text()
    assert "The run kept no moving average" in card
    # A recovery checkpoint, of the middle of an epoch, has no metric.
    assert "epochs" not in card.partition("| option |")[0]
    out, average = publish_run("--out", "average", ema=True)
    assert "weights: the moving average (EMA)" in out
    assert "of the weights after 3 epochs" in Path("average/README.md").read_text()
    loaded = timm.create_model("local-dir:average", pretrained=True)
    assert all(tensor.equal(loaded.state_dict()[name]) for name, tensor in average.state_dict().items())


# --- accuracies


TOP1 = "Top-1 accuracy in percent at 192 pixels, measured in training"
FIGURES = {
    "zero": ({"metric": 0.0, "data_dir": "{here}/data/"}, TOP1, "data"),
    "the current folder": ({"data_dir": "."}, TOP1, "images of the owner"),
    "the average, by a dataset of the Hub": (
        {"ema": True, "eval_metric": "top5", "input_size": [3, 64, 64], "dataset": "hfds/org/birds"},
        "Top-5 accuracy in percent at 64 pixels, measured in training",
        "org/birds",
    ),
    "the average on the CPU": ({"ema": True, "model_ema": True, "model_ema_force_cpu": True}, None, None),
}


@pytest.mark.parametrize(("options", "name", "dataset"), FIGURES.values(), ids=FIGURES)
def test_card_has_an_accuracy_only_if_it_was_measured_on_unseen_images_with_these_weights(
    publish_run, tmp_path, options, name, dataset
):
    for folder in ("data/train", "data/val", "train", "val"):
        images(folder)
    options = {"data_dir": "data", **options}
    out, _ = publish_run(**{**options, "data_dir": options["data_dir"].format(here=tmp_path)})
    assert ("no accuracy on the card: " in out) == (name is None)
    card = ModelCard.load(BUILT / "README.md")
    results = card.data.eval_results or []
    assert [(result.metric_name, result.dataset_name) for result in results] == ([(name, dataset)] if name else [])
    assert ("Their accuracy on images that training did not see is not known" in card.text) == (name is None)
    assert card.data.datasets == (["org/birds"] if dataset == "org/birds" else None)
    assert str(tmp_path) not in str(card)
    if name:
        value, pixels = options.get("metric", 87.5), int(re.search(r"at (\d+) pixels", name)[1])
        assert results[0].dataset_args == {"resolution": pixels, "crop_pct": 0.9}
        assert results[0].metric_value == value
        assert f"| {name} | {value}, {dataset} validation |" in card.text


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)


def images(folder, names="abcdefghij"):
    """Make a folder of images for each class."""
    for name in names:
        Path(folder, name).mkdir(parents=True)
        Path(folder, name, "1.png").touch()


def has_accuracy(metric=87.5, **options):
    """Return whether a run with these options has an accuracy for the card; else it has a reason."""
    run = TrainCheckpoint({**DEFAULTS, "data_dir": "data", **options}, {}, ema=False, epoch=2, metric=metric)
    trained = images_of(run.args, run.args["train_split"])
    found = accuracy_of(run, timm.create_model("nfnet_f0", device="meta", depths=(1, 1, 1, 1)), trained)
    assert isinstance(found, Accuracy) or found
    return isinstance(found, Accuracy)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, True),
        ({"val_split": "eval"}, True),  # a synonym
        ({"val_split": "", "metric": 2.31}, False),
        ({"eval_metric": "loss", "metric": 2.31}, False),
        ({"tta": 3}, False),
        ({"metric": None}, False),
        ({"metric": float("nan")}, False),
        ({"val_num_samples": 100}, False),  # a part of the split
        ({"data_dir": "elsewhere"}, False),
        ({"train_split": "training", "val_split": "train"}, False),  # the same by another name
        ({"val_split": "test"}, False),  # has no folder, so timm reads the whole data folder
        ({"train_split": "train.tar", "val_split": "val.tar"}, False),  # their classes are not compared
        ({"dataset": "torch/folder"}, False),  # reads the data folder as it is
        ({"dataset": "torch/cifar10", "val_split": "test"}, True),
        ({"dataset": "torch/cifar10", "train_split": "everything"}, False),  # torchvision's test images in both
        ({"dataset": "HFDS/org/birds", "val_split": "train"}, False),
        ({"dataset": "hfds/org/birds", "train_split": "train+validation"}, False),
        ({"dataset": "hfids/org/birds", "val_split": "test[:50%]"}, True),
        ({"dataset": "tfds/mnist", "train_split": "train[:90%]", "val_split": "train[90%:]"}, False),
        ({"dataset": "tfds/mnist", "train_split": "all"}, False),
        ({"dataset": "wds/birds", "train_split": "b-{00..99}.tar", "val_split": "b-{90..99}.tar|1000"}, False),
        ({"dataset": "wds/birds", "train_split": "train-{00..99}.tar", "val_split": "val-{00..09}.tar"}, True),
    ],
    ids=str,
)
def test_accuracy_is_known_only_for_the_whole_of_a_split_that_training_did_not_see(here, options, known):
    images("data/train")
    images("data/val")
    for name in ("train.tar", "val.tar"):
        Path("data", name).touch()
    assert has_accuracy(**options) == known


@pytest.mark.parametrize(
    ("train", "val", "known"),
    [
        ("abc", "bc", False),
        ("bc", "abc", False),
        ("abc", "ab", True),  # the numbers of the others stay
        (("2", "10"), ("2",), True),
    ],
)
def test_no_accuracy_if_classes_have_other_numbers_in_validation(here, train, val, known):
    """timm numbers the classes of each folder, so a missing class changes the numbers of others."""
    images("data/train", train)
    images("data/val", val)
    Path("map.txt").write_text("\n".join(train))
    assert has_accuracy() == known
    assert has_accuracy(class_map="map.txt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: images("data"),
        lambda: (images("data/train"), Path("data/val").symlink_to("train")),
        lambda: (images("data/train"), Path("data/val").mkdir(), Path("data/val/a").symlink_to("../train/a")),
        lambda: (images("data/train"), Path("data/val/a").mkdir(parents=True)),
        lambda: images("data/val"),  # the training images are the whole folder
        lambda: images("data/train/val"),
    ],
    ids=["no splits", "link", "link in it", "no images", "no training", "within"],
)
def test_no_accuracy_without_a_separate_validation_folder(here, make):
    """Without it, timm reads the whole data folder, so the accuracy is measured on training images."""
    make()
    split = "train/val" if Path("data/train/val").is_dir() else "validation"
    assert not has_accuracy(val_split=split)


# --- names of classes


def names_of():
    return json.loads((BUILT / "config.json").read_text()).get("label_names")


def found(**options):
    """Return the class names of a run with some options, or why there are none."""
    args = {**DEFAULTS, "data_dir": "data", **options}
    names = find_class_names(args, 10, images_of(args, args["train_split"]))
    return names.names if isinstance(names, FoundNames) else names


@pytest.mark.parametrize("options", [{"dataset": "torch/cifar10"}, {"data_dir": None}])
def test_folders_are_not_class_names_of_a_library_dataset_or_without_a_data_folder(here, options):
    images("train")
    images("data/train")
    assert found(**options) is None


@pytest.mark.parametrize("answer", ["yes", "", None, "--yes", "--class-names"])
def test_found_class_names_are_shown_with_their_place_and_need_a_yes(publish_run, monkeypatch, answer):
    def reply(question):
        assert question == "Publish them? [y/N] "
        if answer is None:
            raise EOFError  # Ctrl-D
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: answer in ("yes", "", None), raising=False)
    monkeypatch.setattr("builtins.input", reply)
    images("data/train")
    Path("names.txt").write_text("\n".join("klmnopqrst"))
    options = {"--yes": ["--yes"], "--class-names": ["--class-names", "names.txt"]}.get(answer, [])
    out, _ = publish_run(*options, data_dir="data")
    if answer == "--class-names":
        assert "class names from names.txt: k, l" in out
        assert names_of() == list("klmnopqrst")
        return
    assert "class names found in data/train: a, b, c, d, e, f, g, h, i, j" in out
    assert ("class names from data/train: a, b" in out) == (answer in ("yes", "--yes"))
    assert ("they are not published; to publish them pass --yes" in out) == (answer in ("", None))
    assert names_of() == (list("abcdefghij") if answer in ("yes", "--yes") else None)


def by_timm(**options):
    """Return the class name of each output, as timm assigns them to the images of the training split."""
    index = create_dataset("", root="data", split="train", **options).reader.class_to_idx
    return sorted(index, key=index.get)


ORDER = "\n".join("jihgfedcba") + "\n"


@pytest.mark.parametrize(
    "files",
    [{"data/train/order.txt": ORDER}, {"order.txt": "\r\n".join("cdefghijab"), "data/train/order.txt": ORDER}],
    ids=["in the split folder", "of Windows, here and in the folder"],
)
def test_class_map_is_found_and_ordered_as_by_timm(here, files):
    images("data/train")
    for path, text in files.items():
        Path(path).write_bytes(text.encode())
    assert found(class_map="order.txt") == by_timm(class_map="order.txt") != sorted(by_timm())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("order.PKL", b"cos\nsystem\n(S'touch owned'\ntR."),
        ("gap.txt", "\n\n".join("jihgfedcba").encode()),
        ("latin.txt", (ORDER[:-2] + "\xe4").encode("latin-1")),
        ("control.txt", (ORDER[:-2] + "\x1b[31ma").encode()),
    ],
)
def test_run_with_an_unusable_class_map_has_no_class_names_but_a_reason(here, name, content):
    images("data/train")
    Path(name).write_bytes(content)
    assert name in found(class_map=name)
    assert not Path("owned").exists()


def test_run_with_a_missing_class_map_is_published_without_class_names(publish_run):
    images("data/train")
    out, _ = publish_run("--yes", data_dir="data", class_map="gone.txt")
    assert "no class names: the run's class map 'gone.txt'" in out
    assert names_of() is None


def test_class_map_in_the_options_names_the_classes(here):
    """A YAML file for --config can contain one."""
    assert found(class_map={name: i for i, name in enumerate("jihgfedcba")}) == list("jihgfedcba")
    assert "10" in found(class_map=dict.fromkeys("jihgfedcba", 0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (images("data/train/animals", "fghij"), images("data/train/things", "abcde")),
        lambda: images("data/train", ["cat", *(f"dog {i}" for i in range(3, 12))]),
        lambda: images("data/training"),
        lambda: (images("data/train", "abcdefghijk"), Path("data/train/k/1.png").rename("data/train/k/1.txt")),
    ],
    ids=["nested", "numbers", "a synonym", "a folder without images"],
)
def test_folder_names_are_class_names_in_the_order_of_timm(here, make):
    make()
    assert found() == by_timm()


def test_folders_that_do_not_name_the_classes_give_a_reason_instead(here):
    images("data/train", "abc")
    assert "data/train has 3 names, expected one for each of 10 classes" in found()


@pytest.mark.parametrize(
    ("options", "name", "on_the_hub"),
    [
        ({"dataset": "torch/cifar10", "data_dir": "./data"}, "cifar10", None),
        ({"dataset": "hfds/org/birds"}, "org/birds", "org/birds"),
        ({"dataset": "hfds//srv/private/birds"}, "birds", None),
        ({"dataset": "hfds/downloads/birds"}, "birds", None),  # a folder that is there
        ({"data_dir": "birds/.."}, None, None),
        ({"data_dir": "C:\\Users\\me\\birds"}, "birds", None),
    ],
)
def test_dataset_has_its_name_on_the_hub_or_that_of_its_folder(here, options, name, on_the_hub):
    Path("downloads/birds").mkdir(parents=True)
    args = {**DEFAULTS, **options}
    assert dataset_name(args) == name
    assert hub_id(name or "") == on_the_hub


# --- text that another person may have written


def rows(text, first):
    """Return the cells of the table rows that begin with ``first``."""
    return [re.split(r"(?<!\\)\|", line)[2:-1] for line in text.splitlines() if line.startswith(f"| {first} |")]


NASTY = "x | y <img src=a onerror=alert(1)> `z` [link](javascript:1) \\| **b** \n| more | cells |\n# title & \ud800"


def test_names_and_options_cannot_change_the_rest_of_the_card(publish_run):
    root = f"data {NASTY.encode(errors='ignore').decode().replace('/', '')}"
    images(f"{root}/train")
    images(f"{root}/validation")
    names = ["a|b", "<script>alert(1)</script>", "`c`", "[d](http://e)", "*f*", "g\\", "h & i", *"jkl"]
    Path("names.txt").write_text("\n".join(names))
    options = {"opt": NASTY, "opt_kwargs": {NASTY: NASTY}, "script": NASTY, "lr": torch.ones(3), "sched": [NASTY]}
    publish_run("--class-names", "names.txt", data_dir=root, **options)
    assert names_of() == names
    body = (BUILT / "README.md").read_text().split("\n---\n", 1)[1]
    for text in ("<img", "<script>", "](javascript", "](http://e)", "\n# title", "\n| more"):
        assert text not in body
    for option in ("`opt`", "`opt_kwargs`", "`sched`", TOP1):
        assert [len(cells) for cells in rows(body, option)] == [1]
    assert rows(body, "`lr`") == []
    ((cell,),) = rows(body, "classes")
    assert html.unescape(cell).strip() == f"10: {', '.join(names)}"

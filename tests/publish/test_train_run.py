"""For a run of train.py, the published network, accuracy and class names are those of the run."""

import argparse
import html
import json
import os
import pickle
import re
from pathlib import Path

import golden
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.data import create_dataset, create_transform, resolve_model_data_config

from nfnet_timm.cli import main
from nfnet_timm.formats.train_checkpoint import TrainCheckpoint
from nfnet_timm.publish.class_names import FoundNames, find_class_names
from nfnet_timm.publish.train_data import dataset_name, hub_dataset
from nfnet_timm.publish.train_run import Accuracy, accuracy_of

BUILT = Path("hub-repos/tiny")
SMALL = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 96), "group_size": 8}
# Default values in train.py of the options that affect the network, its input or its accuracy.
DEFAULTS = {
    "model": "nfnet_f0", "pretrained": False, "pretrained_path": None, "initial_checkpoint": "", "num_classes": 10,
    "gp": None, "img_size": None, "in_chans": None, "input_size": None, "crop_pct": None, "mean": None, "std": None,
    "interpolation": "", "drop": 0.0, "drop_path": None, "drop_block": None, "bn_momentum": None, "bn_eps": None,
    "torchscript": False, "data": None, "data_dir": None, "dataset": "", "train_split": "train",
    "val_split": "validation", "class_map": "", "eval_metric": "top1", "model_ema": False, "model_ema_force_cpu": False,
    "tta": 0, "opt": "agc-sgd", "lr": 0.1, "epochs": 3,
}  # fmt: skip


def built_by_train_script(args):
    """Build a network as train.py does at commit aa4b585, and set all parameters to values that affect the output."""
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
    """Return a function that saves a checkpoint of a run with some options and publishes it.

    It returns the exit status, the output, the errors and the network.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments, ema=False, metric=87.5, state_dict=None, **options):
        args = {**DEFAULTS, "model_kwargs": dict(SMALL), **options}
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
    "catavgmax": {"gp": "catavgmax"},
    "grey": {"in_chans": 1, "mean": (0.5,), "std": (0.25,)},
    "grey by its size": {"input_size": [1, 32, 32], "mean": (0.5,), "std": (0.25,)},
    "grey, with ImageNet's mean": {"input_size": [1, 32, 32]},
    "four channels": {"in_chans": 4},
    "another size": {"img_size": 96},
    "oblong": {"input_size": [3, 64, 96]},
    "one class": {"num_classes": 1},
    "dropout": {"drop": 0.2, "drop_path": 0.1},
    "another activation and alpha": {"model_kwargs": {**SMALL, "act_layer": "silu", "alpha": 0.5}},
    "dilated": {"model_kwargs": {**SMALL, "output_stride": 16}},
    "recomputed": {"model_kwargs": {**SMALL, "recompute_acts": True}},
    "without squeeze-excite": {"model_kwargs": {**SMALL, "rd_ratio": 0.0}},
    "a tag": {"model": "nfnet_f0.dm_in1k"},
    "another network": {"model": "dm_nf_regnet_b0", "model_kwargs": {"depths": (1, 1, 1, 1)}, "gp": "max"},
    "all at once": {"gp": "avgmax", "input_size": [1, 48, 48], "mean": (0.1,), "std": (0.3,), "num_classes": 4},
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_published_network_and_preprocessing_are_those_of_the_run(publish, options):
    status, _, error, model = publish(**options)
    assert status == 0, error
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
    [
        ({"input_size": [1, 32, 32], "mean": (0.5,), "std": (0.25,)}, "(2, 192)"),
        ({"input_size": [1, 32, 32], "gp": "catavgmax"}, "(2, 384)"),
        ({"in_chans": 1, "img_size": 32, "model_kwargs": {**SMALL, "num_features": 0}}, "(2, 96)"),
    ],
)
def test_card_code_of_a_grey_network_runs_and_its_comments_are_right(publish, capsys, options, embeddings):
    from PIL import Image

    publish(**options)
    Image.new("RGB", (50, 40), "red").save("photo.jpg")
    text = (BUILT / "README.md").read_text().replace("hf-hub:org/tiny", f"local-dir:{BUILT}")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
    assert f"torch.Size([{embeddings.strip('()')}])" in capsys.readouterr().out
    assert f"print(vectors.shape)  # {embeddings}" in text
    height, width = options.get("input_size", [1, 32, 32])[1:]
    assert f"| image size | {height} x {width} in training, {height} x {width} in testing |" in text


def test_run_that_started_from_a_published_folder_is_published(publish, tmp_path, capsys):
    """Users fine-tune published models, by the prefixes ``local-dir:`` and ``hf-hub:``."""
    publish("--out", "base", gp="max", input_size=[3, 64, 64])
    status, _, error, model = publish(model="local-dir:base", model_kwargs={}, num_classes=7, gp=None)
    assert (status, error) == (0, "")
    loaded = timm.create_model(f"local-dir:{BUILT}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert loaded.head.global_pool.pool_type == "max"
    assert tuple(resolve_model_data_config(loaded)["input_size"]) == (3, 64, 64)


def test_missing_initial_weights_give_a_one_line_error(publish, capsys):
    publish("--out", "base")
    assert publish(model="local-dir:base", model_kwargs={}, num_classes=7)[0] == 0
    Path("base/config.json").unlink()
    assert main(["publish", "run.pth.tar", "org/tiny", "--license", "mit", "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert "--model local-dir:base: its config.json cannot be read" in error
    assert error.count("\n") == 1


def test_card_names_the_hub_repo_that_a_run_started_from(hub, publish, monkeypatch, capsys):
    publish()
    assert main(["publish", "run.pth.tar", "org/base", "--license", "mit", "--out", "base"]) == 0
    capsys.readouterr()
    status, _, error, _ = publish(
        "--overwrite", model="hf-hub:org/base", model_kwargs={}, num_classes=3, pretrained=True
    )
    assert status == 0, error
    assert ModelCard.load(BUILT / "README.md").data.base_model == "org/base"


def test_the_average_is_published_if_there_is_one(publish):
    _, out, _, model = publish()
    assert "weights: as trained; the checkpoint has no EMA" in out
    assert "the run kept no average" in (BUILT / "README.md").read_text()
    trained = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    _, out, _, average = publish("--out", "average", state_dict=trained, ema=True)
    assert "weights: the moving average (EMA)" in out
    loaded = timm.create_model("local-dir:average", pretrained=True)
    assert all(tensor.equal(loaded.state_dict()[name]) for name, tensor in average.state_dict().items())


def test_checkpoint_of_a_compiled_and_distributed_run_is_published(publish):
    _, _, _, model = publish()
    renamed = {f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    assert publish("--overwrite", state_dict=renamed)[0] == 0


def test_card_has_the_options_and_the_initial_weights_of_the_run(publish):
    publish(pretrained=True)
    card = ModelCard.load(BUILT / "README.md")
    assert card.data.base_model == "timm/dm_nfnet_f0.dm_in1k"
    assert "| `opt` | agc-sgd |" in card.text


def test_card_of_a_recovery_checkpoint_names_no_epoch_as_complete(publish):
    """train.py saves it in the middle of an epoch, without a metric."""
    publish("--out", "recovery", metric=None)
    assert "after epoch" not in Path("recovery/README.md").read_text()
    publish("--out", "best")
    assert "after epoch 2" in Path("best/README.md").read_text()


# --- accuracies


FIGURES = {
    "plain": ({}, "Top-1 accuracy in percent at 192 pixels, measured in training"),
    "zero": ({"metric": 0.0}, "Top-1 accuracy in percent at 192 pixels, measured in training"),
    "top 5": ({"eval_metric": "top5"}, "Top-5 accuracy in percent at 192 pixels, measured in training"),
    "another size": ({"input_size": [3, 64, 64]}, "Top-1 accuracy in percent at 64 pixels, measured in training"),
    "the average": ({"ema": True, "model_ema": True}, "Top-1 accuracy in percent at 192 pixels, measured in training"),
    "the average on the CPU": ({"ema": True, "model_ema": True, "model_ema_force_cpu": True}, None),
    "the training split": ({"val_split": "train"}, None),
}


@pytest.mark.parametrize(("options", "name"), FIGURES.values(), ids=FIGURES)
def test_card_has_an_accuracy_only_if_it_was_measured_on_unseen_images_with_these_weights(publish, options, name):
    images("data/train")
    images("data/val")
    status, out, error, _ = publish(**{"data_dir": "data", **options})
    assert status == 0, error
    assert ("no accuracy on the card: " in out) == (name is None)
    card = ModelCard.load(BUILT / "README.md")
    results = card.data.eval_results or []
    assert [result.metric_name for result in results] == ([name] if name else [])
    value = options.get("metric", 87.5)
    assert (f"| {value} % top-" in card.text) == bool(name)
    assert ("Their accuracy on images that training did not see is not known" in card.text) == (name is None)
    if name:
        pixels = int(re.search(r"at (\d+) pixels", name)[1])
        assert results[0].dataset_args == {"resolution": pixels, "crop_pct": 0.9}
        assert f"at {pixels} x {pixels} pixels |" in card.text
        assert results[0].metric_value == value


def images(folder, names="abcdefghij"):
    """Make a folder of images for each class."""
    for name in names:
        Path(folder, name).mkdir(parents=True)
        Path(folder, name, "1.png").touch()


@pytest.fixture
def has_accuracy(tmp_path, monkeypatch):
    """Return a function: whether a run with some options has an accuracy for the card; else it has a reason."""
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("nfnet_f0", device="meta")

    def has_accuracy(metric=87.5, **options):
        run = TrainCheckpoint({**DEFAULTS, **options}, {}, ema=False, epoch=2, metric=metric)
        found = accuracy_of(run, model)
        assert isinstance(found, Accuracy) or found
        return isinstance(found, Accuracy)

    return has_accuracy


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
        ({"metric": 1234.5}, False),
        ({"val_num_samples": 100}, False),  # a part of the split
        ({"data_dir": "elsewhere"}, False),
        ({"data_dir": None}, False),
        ({"train_split": "training", "val_split": "train"}, False),  # the same by another name
        ({"val_split": "train[:10%]"}, False),
        ({"val_split": "test"}, False),  # has no folder
        ({"train_split": "all"}, False),
        ({"data_dir": "data.tar"}, False),  # one tar for both
    ],
    ids=str,
)
def test_accuracy_is_known_only_for_the_whole_of_a_split_that_training_did_not_see(has_accuracy, options, known):
    images("data/train")
    images("data/val")
    assert has_accuracy(**{"data_dir": "data", **options}) == known


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: images("data"), {}),
        (lambda: images("data/train"), {}),
        (lambda: (images("data/train"), Path("data/val").symlink_to("train")), {}),
        (lambda: (images("data/train"), Path("data/val").mkdir(), Path("data/val/a").symlink_to("../train/a")), {}),
        (lambda: (images("data/train"), Path("data/val/a").mkdir(parents=True)), {}),
        (lambda: images("data/val"), {}),  # the training images are the whole folder
        (lambda: (images("data/train"), images("data/train/val")), {"val_split": "train/val"}),
        (lambda: (images("data/train"), Path("data/validation").touch()), {"val_split": "train/."}),
    ],
    ids=["no splits", "no validation", "link", "link in it", "no images", "no training", "within", "another way to it"],
)
def test_no_accuracy_without_a_separate_validation_folder(has_accuracy, make, options):
    """Without it, timm reads the whole data folder, so the accuracy is measured on training images."""
    make()
    assert not has_accuracy(data_dir="data", **options)


@pytest.mark.parametrize(
    ("dataset", "train", "validation", "known"),
    [
        ("torch/cifar10", "train", "validation", True),
        ("torch/cifar10", "train", "test", True),
        ("torch/cifar10", "train", "training", False),
        ("torch/cifar10", "everything", "validation", False),  # torchvision's test images in both
        ("hfds/org/birds", "train", "validation", True),
        ("HFDS/org/birds", "train", "train", False),
        ("hfds/org/birds", "train+validation", "validation", False),
        ("hfids/org/birds", "train", "test[:50%]", True),
        ("tfds/mnist", "train[:90%]", "train[90%:]", False),
        ("tfds/mnist", "all", "test", False),
        ("wds/birds", "birds-{00..99}.tar", "birds-{90..99}.tar|1000", False),
        ("wds/birds", "train-{00..99}.tar", "val-{00..09}.tar", True),
    ],
)
def test_library_dataset_needs_two_disjoint_splits(has_accuracy, dataset, train, validation, known):
    assert has_accuracy(dataset=dataset, train_split=train, val_split=validation, data_dir="cache") == known


# --- names of classes


def names_of():
    return json.loads((BUILT / "config.json").read_text()).get("label_names")


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Return a function that returns the class names of a run with some options, or why there are none."""
    monkeypatch.chdir(tmp_path)

    def found(**options):
        names = find_class_names({**DEFAULTS, "data_dir": "data", **options}, 10)
        return names.names if isinstance(names, FoundNames) else names

    return found


@pytest.mark.parametrize("dataset", ["hfds/org/data", "torch/cifar10", "tfds/mnist", "hfids/org/data", "wds/x"])
def test_folder_names_are_not_class_names_of_a_library_dataset(found, dataset):
    images("train")
    images("data/train")
    assert found(dataset=dataset) is None
    assert found(dataset=dataset, data_dir=None) is None


def test_current_folder_gives_no_class_names_without_a_data_folder(found):
    images("train")
    assert found(data_dir=None) is None


def test_found_class_names_are_shown_with_their_place_and_need_a_yes(publish, monkeypatch):
    images("data/train")
    _, out, _, _ = publish(data_dir="data")
    assert "class names found in data/train: a, b, c, d, e, f, g, h, i, j" in out
    assert "they are not published; to publish them pass --yes, to publish others --class-names FILE" in out
    assert names_of() is None
    _, out, _, _ = publish("--yes", "--overwrite", data_dir="data")
    assert "class names from data/train: a, b" in out
    assert names_of() == list("abcdefghij")
    Path("names.txt").write_text("\n".join("klmnopqrst"))
    _, out, _, _ = publish("--class-names", "names.txt", "--overwrite", data_dir="data")
    assert "class names from names.txt: k, l" in out
    assert names_of() == list("klmnopqrst")


def test_file_named_by_a_checkpoint_is_not_published_without_a_yes(publish):
    """Another person may have written the checkpoint, and the file may contain anything."""
    Path("secrets.txt").write_text("\n".join(f"password{i}" for i in range(10)))
    _, out, _, _ = publish(class_map="secrets.txt")
    assert "class names found in secrets.txt: password0" in out
    assert not any(b"password" in path.read_bytes() for path in BUILT.iterdir())


def by_timm(**options):
    """Return the class name of each output, as timm assigns them to the images of the training split."""
    dataset = create_dataset("", root="data", split="train", **options)
    index = dataset.reader.class_to_idx
    return sorted(index, key=index.get)


ORDER = "\n".join("jihgfedcba") + "\n"


@pytest.mark.parametrize(
    "files",
    [
        {"data/train/order.txt": ORDER, "data/validation/order.txt": ORDER},
        {"order.txt": ORDER, "data/train/order.txt": "\n".join("abcdefghij")},
        {"order.txt": "\r\n".join("cdefghijab")},
        {"data/train/order.TXT": ORDER},
    ],
    ids=["in the split folders", "here and in the folders", "of Windows", "capitals"],
)
def test_class_map_is_found_and_ordered_as_by_timm(found, files):
    images("data/train")
    images("data/validation")
    for path, text in files.items():
        Path(path).write_bytes(text.encode())
    class_map = "order.TXT" if any(path.endswith("TXT") for path in files) else "order.txt"
    assert found(class_map=class_map) == by_timm(class_map=class_map) != sorted(by_timm())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("order.pkl", pickle.dumps({name: i for i, name in enumerate("jihgfedcba")})),
        ("order.PKL", b"cos\nsystem\n(S'touch owned'\ntR."),
        ("order.csv", ORDER.encode()),
        ("few.txt", b"j\ni\n"),
        ("many.txt", (ORDER + "k\n").encode()),
        ("gap.txt", "\n\n".join("jihgfedcba").encode()),
        ("twice.txt", ("j\n" + ORDER).encode()),
        ("latin.txt", (ORDER[:-2] + "\xe4").encode("latin-1")),
        ("control.txt", (ORDER[:-2] + "\x1b[31ma").encode()),
        (None, None),
    ],
)
@pytest.mark.parametrize("place", ["", "data/train"])
def test_run_with_an_unusable_class_map_has_no_class_names_but_a_reason(found, name, content, place):
    images("data/train")
    if name is not None:
        Path(place, name).write_bytes(content)
    assert (name or "gone.txt") in found(class_map=name or "gone.txt")
    assert not Path("owned").exists()


def test_run_with_an_unusable_class_map_is_published_without_class_names(publish):
    images("data/train")
    status, out, error, _ = publish("--yes", data_dir="data", class_map="gone.txt")
    assert status == 0, error
    assert "no class names: the run's class map 'gone.txt'" in out
    assert names_of() is None


def test_class_map_in_the_options_names_the_classes(found):
    """A YAML file for --config can contain one."""
    assert found(class_map={name: i for i, name in enumerate("jihgfedcba")}) == list("jihgfedcba")
    assert "10" in found(class_map=dict.fromkeys("jihgfedcba", 0))


def test_torchvision_datasets_have_no_class_map(found):
    Path("order.txt").write_text(ORDER)
    assert "order.txt" in found(dataset="torch/cifar10", class_map="order.txt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: (images("data/train/animals", "fghij"), images("data/train/things", "abcde")),
        lambda: (images("data/train"), Path("data/train/.ipynb_checkpoints").mkdir()),
        lambda: images("data/train", ["cat", *(f"dog {i}" for i in range(3, 12))]),
        lambda: images("data"),
        lambda: images("data/training"),
        lambda: (images("data/train", "abcdefghijk"), Path("data/train/k/1.png").rename("data/train/k/1.txt")),
    ],
    ids=["nested", "an empty folder", "numbers", "no split", "a synonym", "a folder without images"],
)
def test_folder_names_are_class_names_in_the_order_of_timm(found, make):
    make()
    assert found() == by_timm()


def unlabelled():
    images("data/train", "abcdefghi")
    Path("data/train/1.png").touch()


def not_utf8():
    images("data/train", "abcdefghi")
    path = os.fsencode("data/train") + b"/\xff"
    os.mkdir(path)
    open(path + b"/1.png", "w").close()


@pytest.mark.parametrize(
    "make",
    [lambda: images("data/train", "abc"), unlabelled, not_utf8],
    ids=["another number of folders", "images outside of folders", "a name that is not UTF-8"],
)
def test_folders_that_do_not_name_the_classes_give_a_reason_instead(found, make):
    make()
    assert "data/train" in found()


@pytest.mark.parametrize("answer", ["yes", "", None])
def test_only_yes_publishes_the_class_names(publish, monkeypatch, answer):
    images("data/train")

    def reply(question):
        assert question == "Publish them? [y/N] "
        if answer is None:
            raise EOFError  # Ctrl-D
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", reply)
    status, _, error, _ = publish(data_dir="data")
    assert (status, error) == (0, "")
    assert (names_of() is not None) == (answer == "yes")


@pytest.mark.parametrize(
    ("options", "name", "on_the_hub"),
    [
        ({"dataset": "torch/cifar10", "data_dir": "./data"}, "cifar10", None),
        ({"dataset": "tfds/oxford_flowers102", "data_dir": "./data"}, "oxford_flowers102", None),
        ({"dataset": "hfds/org/birds"}, "org/birds", "org/birds"),
        ({"dataset": "hfds//srv/private/birds"}, "birds", None),
        ({"dataset": "hfds/downloads/birds"}, "birds", None),  # a folder that is there
        ({"data": "birds"}, "birds", None),
        ({"dataset": "torch/image_folder", "data_dir": "birds"}, "birds", None),
        ({"data_dir": "birds/."}, "birds", None),
        ({"data_dir": "./"}, None, None),
        ({"data_dir": "birds/.."}, None, None),
        ({"data_dir": "C:\\Users\\me\\birds"}, "birds", None),
    ],
)
def test_dataset_has_its_name_on_the_hub_or_that_of_its_folder(tmp_path, monkeypatch, options, name, on_the_hub):
    monkeypatch.chdir(tmp_path)
    Path("downloads/birds").mkdir(parents=True)
    args = {**DEFAULTS, **options}
    assert (dataset_name(args), hub_dataset(args)) == (name, on_the_hub)


@pytest.mark.parametrize(
    ("options", "name", "on_the_hub"),
    [
        ({"dataset": "hfds/org/birds"}, "org/birds", ["org/birds"]),
        ({"data_dir": "{here}/birds/"}, "birds", None),
        ({"data_dir": "."}, "a folder of images", None),
    ],
)
def test_card_has_the_dataset_of_the_run(publish, tmp_path, options, name, on_the_hub):
    for root in ("birds", "."):
        images(f"{root}/train")
        images(f"{root}/validation")
    publish(**{key: value.format(here=tmp_path) for key, value in options.items()})
    card = ModelCard.load(BUILT / "README.md")
    assert card.data.eval_results[0].dataset_name == name
    assert card.data.datasets == on_the_hub
    assert str(tmp_path) not in str(card)


def rows(text, first):
    """Return the cells of the table rows that begin with ``first``."""
    return [re.split(r"(?<!\\)\|", line)[2:-1] for line in text.splitlines() if line.startswith(f"| {first} |")]


NASTY = "x | y <img src=a onerror=alert(1)> `z` [link](javascript:1) \\| **b** \n| more | cells |\n# title & \ud800"


def test_text_of_a_checkpoint_cannot_change_the_rest_of_the_card(publish):
    """Another person may have written names and options. They may contain Markdown, HTML or line breaks."""
    images(f"data {NASTY.encode(errors='ignore').decode().replace('/', '')}/train")
    root = next(str(path) for path in Path().iterdir() if path.name.startswith("data "))
    images(f"{root}/validation")
    status, _, error, _ = publish(
        data_dir=root, opt=NASTY, opt_kwargs={NASTY: NASTY}, script=NASTY, lr=torch.ones(3), sched=[NASTY], epochs=7
    )
    assert status == 0, error
    text = (BUILT / "README.md").read_text()
    body = text.split("\n---\n", 1)[1]
    assert "<img" not in body
    assert "](javascript" not in body
    assert "\n# title" not in body
    assert not any(line.startswith("| more") for line in body.splitlines())
    for option in ("`opt`", "`opt_kwargs`", "`sched`", "`epochs`"):
        assert [len(cells) for cells in rows(body, option)] == [1]
    assert rows(body, "`lr`") == []
    assert [len(cells) for cells in rows(body, "accuracy, measured in training")] == [1]


def test_class_names_cannot_change_the_rest_of_the_card(publish):
    names = ["a|b", "<script>alert(1)</script>", "`c`", "[d](http://e)", "*f*", "g\\", "h & i", *"jkl"]
    Path("names.txt").write_text("\n".join(names))
    status, _, error, _ = publish("--class-names", "names.txt")
    assert status == 0, error
    assert names_of() == names
    text = (BUILT / "README.md").read_text()
    assert "<script>" not in text
    assert "](http://e)" not in text
    ((cell,),) = rows(text, "classes")
    assert html.unescape(cell).strip() == f"10: {', '.join(names)}"


def test_docs_explain_every_option_of_train_py():
    rows = [line for line in (golden.ROOT / "docs" / "weights.md").read_text().splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == json.loads((golden.DATA / "train_script_options.json").read_text())

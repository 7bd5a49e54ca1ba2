"""transformers loads what is written here, and its Trainer trains it."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from compat_table import BATCH, assert_weights_of_a_plain_loop, images_and_labels, optimizer_of
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from nfnet_timm.cli import main
from nfnet_timm.publish.folder import save_folder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.library("transformers")

WIDTHS = {"depths": (1, 1, 1, 1), "channels": (32, 64, 96, 96), "group_size": 8}
# Forms of networks, by arguments of create_model beside WIDTHS.
FORMS = {
    "1000 classes": {},
    "10 named classes": {"num_classes": 10},
    "one channel": {"num_classes": 10, "in_chans": 1},
    "another pool": {"global_pool": "max"},
    "another activation": {"act_layer": "silu", "num_classes": 3},
}


def written(folder, **kwargs):
    """A network with these arguments, in eval mode, and its folder."""
    torch.manual_seed(0)
    model = timm.create_model("nfnet_f0", **WIDTHS, **kwargs).eval()
    for name, p in model.named_parameters():
        if name.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.7)
    names = {"label_names": [f"kind {i}" for i in range(model.num_classes)]} if model.num_classes == 10 else {}
    save_folder(model, folder, {**WIDTHS, **kwargs}, model_config=names)
    return model, folder


@pytest.mark.parametrize("form", FORMS)
def test_auto_classes_give_the_same_logits_to_the_bit(form, tmp_path):
    """AutoModelForImageClassification gives the logits of timm to the bit, also after save_pretrained."""
    model, folder = written(tmp_path / "model", **FORMS[form])
    x = torch.randn(2, model.in_chans, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        loaded = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        assert loaded(x).logits.equal(expected)
        loaded.save_pretrained(tmp_path / "again")
        again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()
        assert again(x).logits.equal(expected)
        # and timm reads what transformers wrote
        assert timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()(x).equal(expected)
    assert loaded.num_labels == model.num_classes


def test_auto_model_gives_the_same_embeddings_to_the_bit(tmp_path):
    """AutoModel gives the embeddings of a network without a classifier, to the bit."""
    model, folder = written(tmp_path / "model", num_classes=0)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert transformers.AutoModel.from_pretrained(folder).eval()(x).pooler_output.equal(model(x))


def test_pipeline_names_the_classes(tmp_path):
    """pipeline("image-classification") gives the class names, with the probabilities of timm's preprocessing."""
    model, folder = written(tmp_path / "model", num_classes=10)
    image = Image.effect_noise((300, 200), 80).convert("RGB")
    classify = transformers.pipeline("image-classification", model=str(folder))
    transform = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        probabilities = model(transform(image).unsqueeze(0)).softmax(1)[0]
    best = classify(image, top_k=3)
    assert [guess["label"] for guess in best] == [f"kind {int(i)}" for i in probabilities.topk(3).indices]
    assert [guess["score"] for guess in best] == pytest.approx(probabilities.topk(3).values.tolist(), rel=1e-5)


def test_no_import_of_this_package_is_needed(tmp_path):
    """A fresh process that imports transformers alone loads a folder."""
    _, folder = written(tmp_path / "model", num_classes=10)
    code = (
        "from transformers import AutoModelForImageClassification as A; import sys; "
        "print(type(A.from_pretrained(sys.argv[1]).timm_model).__module__)"
    )
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "nfnet_timm.models.nfnet", run.stderr


@pytest.mark.parametrize("command", ["convert", "publish"])
def test_folders_of_the_commands_load(command, tmp_path, monkeypatch):
    """Folders that `convert` and `publish` write load in transformers, with equal logits."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    if command == "convert":
        authors = str(Path(__file__).parent.parent / "data" / "nfnet_tiny_haiku_2021.npz")
        assert main(["convert", authors, "--out", str(tmp_path / "out")]) == 0
    else:
        written(source, num_classes=10)
        out = ["--out", str(tmp_path / "out")]
        assert main(["publish", str(source), "some/name", "--license", "apache-2.0", "--dry-run", *out]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
        # Both models map the file. The address of a tensor decides the order of sums, so copies are compared.
        assert copy.deepcopy(loaded)(x).logits.equal(copy.deepcopy(model)(x))


def test_publish_mends_a_config_that_transformers_refuses(tmp_path, monkeypatch, capsys):
    """`publish` removes arguments that config.json contains twice, which transformers refuses, and keeps the rest."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hub-repos" / "name"
    written(tmp_path / "source", num_classes=10)
    publish = ["some/name", "--license", "apache-2.0", "--dry-run"]
    assert main(["publish", str(tmp_path / "source"), *publish]) == 0
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nA line by hand.\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {**config["model_args"], "num_classes": 10, "in_chans": 3, "global_pool": "avg"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    with pytest.raises(TypeError, match="multiple values"):
        transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert main(["publish", str(folder), "some/name", "--dry-run", "--overwrite"]) == 0
    assert transformers.AutoModelForImageClassification.from_pretrained(folder).num_labels == 10
    assert card.read_text().endswith("A line by hand.\n")


def test_lines_of_the_card_run(hub, tmp_path, monkeypatch):
    """The lines of a published card for transformers run, against a Hub, and name the classes."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "source", num_classes=10)
    Image.effect_noise((90, 80), 80).save("photo.jpg")
    assert main(["publish", "source", "org/name", "--license", "mit", "--yes"]) == 0
    text = hub.files("org/name")["README.md"].decode()
    assert "- transformers\n" in text
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "transformers" in b)
    run = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=300)
    assert "'label': 'kind " in run.stdout, run.stderr


def test_trainer_ends_in_the_weights_of_a_plain_loop(tmp_path):
    """Trainer with an optimizer of create_optimizer ends in the weights of a plain loop, to the bit."""
    _, folder = written(tmp_path / "model", num_classes=10)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        max_grad_norm=0,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    data = [{"pixel_values": image, "labels": label} for image, label in zip(*images_and_labels(24), strict=True)]
    optimizers = (optimizer_of(model.timm_model), None)
    transformers.Trainer(model, arguments, train_dataset=data, optimizers=optimizers).train()
    assert_weights_of_a_plain_loop(model.timm_model, timm.create_model(f"local-dir:{folder}", pretrained=True))

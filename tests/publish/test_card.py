"""Model cards are up to date, complete and correct, and their code runs."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from unittest import mock

import golden
import pytest
import timm
from huggingface_hub import ModelCard

from nfnet_timm.cli import main
from nfnet_timm.formats.haiku_writer import write_tree
from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.card import render_card
from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.sources import Source

CHECKPOINTS = load_published()["checkpoints"]


@cache
def card(name) -> ModelCard:
    model = timm.create_model(name.split(".")[0], device="meta").eval()
    with mock.patch("nfnet_timm.publish.card.multiply_adds", return_value=12.3):  # counting takes seconds
        return ModelCard(render_card(Source(model, {}, {}, checkpoint=name, identified_by="MD5"), f"nfnet-timm/{name}"))


@pytest.mark.parametrize("name", ["nfnet_f0.dm_in1k", "nfnet_f6.dm_in1k"])
def test_card_of_a_released_file_has_every_result_with_its_source_and_is_honest_about_the_rest(name):
    data, text = card(name).data, " ".join(card(name).text.split())
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "timm", "image-classification")
    assert data.datasets == ["imagenet-1k"]
    assert {"timm", "nfnet-timm"} <= set(data.tags)
    assert "upstream states no separate licence for them" in text
    assert "not measured again for this page" in text
    assert ("sharpness-aware minimization" in text) == (name == "nfnet_f6.dm_in1k")
    assert ("means of several training runs" in text) == (name == "nfnet_f0.dm_in1k")
    assert "None" not in text
    published, size, found = CHECKPOINTS[name], VARIANTS[name.split(".")[0]].test_size, {}
    for result in data.eval_results:
        assert (result.dataset_type, result.dataset_split) == ("imagenet-1k", "validation")
        assert result.dataset_args == {"resolution": size}
        assert ("timm" in result.metric_name) == ("pytorch-image-models" in result.source_url)
        found[result.metric_name.split(" ")[0], result.metric_name.split(", ")[1]] = result.metric_value
    assert found == {
        ("Top-1", "published"): published["top1"],
        ("Top-5", "published"): published["top5"],
        ("Top-1", "measured by timm"): published["timm_top1"],
        ("Top-5", "measured by timm"): published["timm_top5"],
    }


@pytest.mark.slow
def test_the_code_of_a_card_runs_on_what_was_published(hub, tmp_path, monkeypatch):
    """The card is that of a full-size F0, so it has every section. The arrays are those of tests/support/golden.py."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    monkeypatch.chdir(tmp_path)
    write_tree(golden.tree("nfnet_f0"), "mine.npz")
    Image.fromarray(load_sample_image("china.jpg")).save("photo.jpg")
    assert main(["publish", "mine.npz", "org/nfnet_f0", "--license", "mit"]) == 0
    text = hub.files("org/nfnet_f0")["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 5
    released = card("nfnet_f0.dm_in1k").text.replace("nfnet-timm/nfnet_f0.dm_in1k", "org/nfnet_f0")
    assert blocks == re.findall(r"```python\n(.*?)```", released, flags=re.DOTALL)
    outputs = []
    del blocks[1]  # tests/compat/test_transformers.py runs the block that needs transformers
    for block in blocks:
        environment = dict(os.environ)
        if "dm_nfnet_f0" in block:  # plain timm
            environment["NFNET_TIMM_AUTOLOAD"] = "0"
        result = subprocess.run([sys.executable, "-c", block], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    assert "torch.Size([1, 512, 32, 32])" in outputs[1]
    assert "torch.Size([2, 3072])" in outputs[2]
    hub.log.clear()
    assert timm.create_model("hf-hub:org/nfnet_f0", pretrained=True).num_features == 3072
    assert not any(method == "GET" and "model.safetensors" in path for method, path, _ in hub.log)


@pytest.mark.parametrize("arguments", [{"depths": (1, 1, 1, 1)}, {"num_classes": 0}])
def test_card_has_multiply_adds_only_with_the_usual_depths_and_channels(arguments):
    model = timm.create_model("dm_nf_resnet50", device="meta", **arguments).eval()
    text = render_card(Source(model, arguments, {"source": "mine.npz"}), "org/mine", "mit")
    assert ("multiply-adds" in text) == ("depths" not in arguments)


def test_docs_explain_every_option_of_train_py_and_cards_show_those_that_docs_name():
    options = json.loads((golden.DATA / "train_script_options.json").read_text())
    rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", (golden.ROOT / "docs" / "weights.md").read_text(), re.M)
    explained = {option: effect for names, effect in rows for option in re.findall(r"\w+", names)}
    assert sorted(explained) == options
    model = timm.create_model("nfnet_f0", device="meta", depths=(1, 1, 1, 1)).eval()
    source = Source(model, {}, {"source": "run.pth.tar"}, training=dict.fromkeys(options, "given"))
    shown = set(re.findall(r"^\| `(\w+)` \| given \|$", render_card(source, "org/mine", "mit"), re.M))
    assert {option for option, effect in explained.items() if effect.startswith("Are listed on the card")} <= shown
    assert not shown & {option for option, effect in explained.items() if effect.startswith("Nothing")}

"""The command publishes a bare state dict, whose network the user names."""

import json
import struct
from pathlib import Path

import golden
import pytest
import timm
import torch
from safetensors.torch import save_file

from nfnet_timm.cli import main
from nfnet_timm.publish.fingerprints import logits_of

KWARGS = ["--model", "nfnet_f0", "--model-kwargs", "depths=(1,2,2,1)", "channels=[32,64,96,96]", "group_size=8"]


def prefixed(state_dict, prefix):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


FILES = {
    "safetensors": (lambda sd, path: save_file(sd, path), "w.safetensors"),
    "torch.save": (lambda sd, path: torch.save(sd, path), "w.pth"),
    "old torch.save": (lambda sd, path: torch.save(sd, path, _use_new_zipfile_serialization=False), "w.pt"),
    "with the epoch": (lambda sd, path: torch.save({"state_dict": sd, "epoch": 3, "loss": 0.1}, path), "w.tar"),
    "under model": (lambda sd, path: torch.save({"model": sd, "optimizer": {}}, path), "w.pth"),
    "of DDP": (lambda sd, path: torch.save(prefixed(sd, "module."), path), "w.pth"),
    "of torch.compile": (lambda sd, path: save_file(prefixed(sd, "_orig_mod."), path), "w.safetensors"),
    "of Lightning": (
        lambda sd, path: torch.save(
            {
                "state_dict": prefixed(sd, "net._orig_mod."),
                "pytorch-lightning_version": "2.5.0",
                "epoch": 1,
                "hyper_parameters": {"lr": 0.1},
                "callbacks": {},
                "optimizer_states": [{"state": {}, "param_groups": []}],
            },
            path,
        ),
        "epoch=1.ckpt",
    ),
    "half": (lambda sd, path: save_file({k: v.half() for k, v in sd.items()}, path), "w.safetensors"),
}


@pytest.fixture
def publish(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(source, *options):
        status = main(["publish", str(source), "org/tiny", "--license", "mit", "--dry-run", *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize(("save", "name"), FILES.values(), ids=FILES)
def test_a_state_dict_of_a_named_network_is_published(publish, tiny, tmp_path, save, name):
    model = tiny()
    save(model.state_dict(), tmp_path / name)
    status, _, error = publish(name, *KWARGS)
    assert status == 0, error
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub-repos' / 'tiny'}", pretrained=True).eval()
    expected = model.half().float() if save is FILES["half"][0] else model
    torch.testing.assert_close(logits_of(loaded), logits_of(expected))


def test_classes_and_channels_are_those_of_the_weights(publish, tiny, tmp_path):
    save_file(tiny(num_classes=3, in_chans=1).state_dict(), "w.safetensors")
    assert publish("w.safetensors", *KWARGS)[0] == 0
    config = json.loads((tmp_path / "hub-repos" / "tiny" / "config.json").read_text())
    assert config["num_classes"] == 3
    assert config["model_args"]["in_chans"] == 1
    assert config["pretrained_cfg"]["input_size"][0] == 1


def test_the_average_is_published_where_there_is_one(publish, tiny, tmp_path):
    average = tiny().state_dict()
    average["head.fc.bias"] = torch.full((10,), 0.5)
    torch.save({"state_dict": tiny().state_dict(), "state_dict_ema": average}, "w.pth")
    assert publish("w.pth", *KWARGS)[0] == 0
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub-repos' / 'tiny'}", pretrained=True)
    assert loaded.head.fc.bias.tolist() == [0.5] * 10


@pytest.mark.parametrize("safe", [False, True, "both"])
def test_a_folder_of_timms_save_for_hf_is_published(publish, tiny, tmp_path, safe):
    model = tiny()
    timm.models.save_for_hf(model, "mine", model_args=golden.TINY, safe_serialization=safe)
    status, _, error = publish("mine")
    assert status == 0, error
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub-repos' / 'tiny'}", pretrained=True).eval()
    torch.testing.assert_close(logits_of(loaded), logits_of(model))


class Trap:
    def __reduce__(self):
        return exec, ("open('PWNED', 'w').close()",)


def hostile_folder(sd):
    timm.models.save_for_hf(timm.create_model("nfnet_f0", **golden.TINY), "mine", model_args=golden.TINY)
    torch.save({**sd, "x": Trap()}, "mine/pytorch_model.bin")
    return "mine"


def saved(content, name="w.pth"):
    torch.save(content, name)
    return name


def tensors(content):
    save_file(content, "w.safetensors")
    return "w.safetensors"


def damaged(sd):
    save_file(sd, "w.safetensors")
    with open("w.safetensors", "r+b") as file:
        file.truncate(5000)
    return "w.safetensors"


def header(text):
    with open("w.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
    return "w.safetensors"


REFUSED = {
    "no name": (tensors, [], "--model nfnet_f0 --model-kwargs depths=(1,2,2,1) channels=(32,64,96,96)"),
    "unknown name": (tensors, ["--model", "resnet50"], "resnet50"),
    "other shapes": (tensors, [*KWARGS, "depths=(1,2,3,1)"], "stages.2"),
    "a name with a mistake": (
        tensors,
        ["--model", "nfnet_f00"],
        "--model nfnet_f00: no such network; expected one of nfnet_timm, such as nfnet_f0 or",
    ),
    "unknown argument": (tensors, [*KWARGS, "width=3"], "--model-kwargs: unknown entry 'width'"),
    "whole numbers": (
        lambda sd: tensors({**sd, "head.fc.bias": sd["head.fc.bias"].long()}),
        KWARGS,
        "head.fc.bias is torch.int64: expected a floating-point dtype",
    ),
    "argument of another type": (tensors, [*KWARGS, "alpha=big"], "'big'"),
    "wrong classes": (tensors, [*KWARGS, "num_classes=7"], "head.fc"),
    "two networks": (lambda sd: saved({**sd, **prefixed(sd, "ema.module.")}), KWARGS, "'ema.module.'"),
    "more arrays": (
        lambda sd: tensors({**prefixed(sd, "model."), "head2.weight": torch.ones(1)}),
        KWARGS,
        "head2.weight",
    ),
    "of another network": (lambda sd: saved(timm.create_model("test_resnet").state_dict()), KWARGS, "stem.conv"),
    "numbers": (lambda sd: saved({**sd, "epoch": 3}), KWARGS, "'epoch'"),
    "code": (lambda sd: saved({**sd, "x": Trap()}), KWARGS, "exec"),
    "a whole model": (lambda sd: saved(timm.create_model("nfnet_f0", **golden.TINY)), KWARGS, "NormFreeNet"),
    "code in a folder": (hostile_folder, [], "exec"),
    "cut": (damaged, KWARGS, "damaged"),
    "a header that is no JSON": (lambda sd: header(b"{" * 40), KWARGS, "damaged"),
    "an image": (lambda sd: Path("photo.jpg").write_bytes(b"\xff\xd8\xff") and "photo.jpg", KWARGS, "not a pickle"),
    "a name for a folder": (
        lambda sd: timm.models.save_for_hf(timm.create_model("nfnet_f0", **golden.TINY), "f") or "f",
        KWARGS,
        "--model",
    ),
}


@pytest.mark.parametrize(("write", "options", "named"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused_in_one_line_that_names_what_is_wrong(publish, tiny, tmp_path, write, options, named):
    status, _, error = publish(write(tiny().state_dict()), *options)
    assert status == 1
    assert error.count("\n") == 1
    assert named in error
    assert not (tmp_path / "PWNED").exists()
    assert not (tmp_path / "hub-repos" / "tiny").exists()


@pytest.mark.parametrize("text", ["depths", "=3", "a b=1", ""])
def test_arguments_that_are_no_pairs_are_wrong_usage(text, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["publish", "w.pth", "org/tiny", "--model", "nfnet_f0", "--model-kwargs", text])
    assert exit_.value.code == 2
    assert repr(text) in capsys.readouterr().err

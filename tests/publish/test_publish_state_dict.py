"""The command publishes a state dict, whose network the user names, and a folder of timm's save_for_hf."""

import json
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
    "before torch 1.6": lambda sd: torch.save(sd, "w", _use_new_zipfile_serialization=False),
    "under model": lambda sd: torch.save({"model": sd, "optimizer": {}}, "w"),
    "of Lightning": lambda sd: torch.save(
        {
            "state_dict": prefixed(sd, "net._orig_mod."),
            "pytorch-lightning_version": "2.5.0",
            "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [{"state": {}, "param_groups": []}],
        },
        "w",
    ),
    "with an average": lambda sd: torch.save({"state_dict": {}, "state_dict_ema": sd}, "w"),
    "safetensors of DDP": lambda sd: save_file(prefixed(sd, "module."), "w.safetensors"),
    "half": lambda sd: save_file({k: v.half() for k, v in sd.items()}, "w.safetensors"),
}


@pytest.mark.parametrize("save", FILES.values(), ids=FILES)
def test_a_state_dict_of_a_named_network_is_published(publish, tiny, save):
    model = tiny(num_classes=3, in_chans=1)
    save(model.state_dict())
    file = next(path for path in ("w", "w.safetensors") if Path(path).exists())
    status, _, error = publish(file, *KWARGS, "--dry-run")
    assert status == 0, error
    loaded = timm.create_model("local-dir:hub-repos/tiny", pretrained=True).eval()
    expected = model.half().float() if save is FILES["half"] else model
    torch.testing.assert_close(logits_of(loaded), logits_of(expected))
    config = json.loads(Path("hub-repos/tiny/config.json").read_text())
    assert (config["num_classes"], config["model_args"]["in_chans"]) == (3, 1)
    assert config["pretrained_cfg"]["input_size"][0] == 1


@pytest.mark.parametrize("safe", [False, True])
def test_a_folder_of_timms_save_for_hf_is_published(publish, tiny, safe):
    model = tiny()
    timm.models.save_for_hf(model, "mine", model_args=golden.TINY, safe_serialization=safe)
    status, _, error = publish("mine", "--dry-run")
    assert status == 0, error
    loaded = timm.create_model("local-dir:hub-repos/tiny", pretrained=True).eval()
    torch.testing.assert_close(logits_of(loaded), logits_of(model))


@pytest.mark.parametrize("text", ["depths", "a b=1"])
def test_arguments_that_are_no_pairs_are_wrong_usage(text, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["publish", "w.pth", "org/tiny", "--model", "nfnet_f0", "--model-kwargs", text])
    assert exit_.value.code == 2
    assert repr(text) in capsys.readouterr().err

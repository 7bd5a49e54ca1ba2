"""Files of other programs are published with the same network, or refused.

An invalid, damaged or hostile file gives a one-line error, and nothing is published.
"""

import argparse
import io
import json
import os
import pickle
import random
import shlex
import shutil
import zipfile
from pathlib import Path

import golden
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from nfnet_timm.cli import main
from nfnet_timm.publish.fingerprints import logits_of
from nfnet_timm.publish.folder import save_folder

HEAD = "---\nlicense: mit\nlibrary_name: timm\npipeline_tag: image-classification\ntags:\n- timm\n---\n# Mine\n"
KWARGS = ["depths=(1,2,2,1)", "channels=[32,64,96,96]", "group_size=8"]
NAMED = ["--model", "nfnet_f0", "--model-kwargs", *KWARGS]


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "folder"
    save_folder(timm.create_model("nfnet_f0", **golden.TINY), folder, golden.TINY, {"source": "mine.npz"})
    return folder


@pytest.fixture
def folder(saved_once, tmp_path):
    return Path(shutil.copytree(saved_once, tmp_path / "folder"))


class Hostile:
    def __reduce__(self):
        return open, ("owned", "w")


def assert_publishes(publish, source, *options, model):
    """Publish a source, and compare the logits of the result with those of ``model``."""
    status, _, error = publish(source, "--dry-run", *options)
    assert status == 0, error
    loaded = timm.create_model("local-dir:hub-repos/tiny", pretrained=True).eval()
    torch.testing.assert_close(logits_of(loaded), logits_of(model))


# --- a folder


@pytest.mark.parametrize("safe", [False, True])
def test_a_folder_of_timms_save_for_hf_is_published(publish, tiny, safe):
    model = tiny()
    timm.models.save_for_hf(model, "mine", model_args=golden.TINY, safe_serialization=safe)
    assert_publishes(publish, "mine", model=model)


def entry(name, value):
    return lambda config: config.update({name: value})


def cfg(name, value):
    return lambda config: config["pretrained_cfg"].update({name: value})


def argument(name, value):
    return lambda config: config["model_args"].update({name: value})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (entry("model_args", None), "model_args"),
        (entry("architecture", "resnet50"), "resnet50"),
        (entry("num_classes", "10"), "'10', expected int"),
        (entry("num_classes", True), "True"),
        (entry("num_classes", 7), "head.fc"),
        (entry("label_names", list(range(10))), "label_names"),
        (cfg("label_names", ["cat", "dog"]), "2 class names for 10"),
        (cfg("no_such_entry", 1), "no_such_entry"),
        (cfg("input_size", [3, 0, 192]), "[3, 0, 192]"),
        (cfg("mean", [0.5, 0.5]), "[0.5, 0.5]"),
        (cfg("std", [float("nan")] * 3), "nan"),
        (cfg("interpolation", "magic"), "'magic'"),
        (cfg("architecture", "nfnet_f6"), "nfnet_f6"),
        (argument("depths", [1, 1, 1, 2]), "stages.3.1"),
        (argument("global_pool", "magic"), "magic"),
        (argument("global_pool", ""), "global_pool is ''"),
        (argument("depths", [1, 1, 1, 10_000_000]), "depths=(1, 1, 1, 10000000): expected at most 1000 blocks"),
        (argument("channels", [10**30, 64, 96, 96]), "cannot be built"),
        (argument("checkpoint_path", "/etc/passwd"), "checkpoint_path"),
    ],
)
def test_wrong_entry_of_a_config_is_named(folder, refused, change, expected):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    assert expected in refused("folder")


@pytest.mark.parametrize("text", [b"{", b"[]", b"[" * 100_000])
def test_config_that_is_not_an_object_is_named(folder, refused, text):
    (folder / "config.json").write_bytes(text)
    assert "config.json" in refused("folder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD.replace("mit", "[mit"), "README.md"),
        (HEAD.replace("license: mit", "license: 5"), "5"),
        (HEAD.replace("license: mit", "a: !!python/object:os.system {}"), "README.md"),
        (HEAD.replace("license: mit", "model-index:\n- name: a\n  results: [b]\nlicense: mit"), "model_index"),
        ("---\n- a\n---\n", "README.md"),
        (HEAD + "\udcff", "README.md is not text in UTF-8"),
        (HEAD.replace("library_name: timm\n", ""), "lacks library_name"),
        ("# No metadata\n", "README.md states no licence"),
        (HEAD + "`hf-hub:org/tiny2`", "README.md loads 'hf-hub:org/tiny2' and not 'hf-hub:org/tiny'"),
    ],
)
def test_wrong_card_is_refused(folder, refused, text, expected):
    (folder / "README.md").write_bytes(text.encode(errors="surrogateescape"))
    assert expected in refused("folder")


def test_card_with_other_entries_of_the_hub_is_published(folder, publish):
    text = HEAD.replace("license: mit", "license: mit\nself: 3\nignore_metadata_errors: true\ndate: 2020-01-01")
    (folder / "README.md").write_text(text)
    assert publish("folder", "--dry-run", license=None)[0] == 0
    assert Path("hub-repos/tiny/README.md").read_text() == text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda arrays: arrays.update({"head.fc.bias": torch.zeros(())}), "head.fc.bias"),
        (lambda arrays: arrays.update({"head.fc.bias": arrays["head.fc.bias"].long()}), "I64"),
        (lambda arrays: arrays.pop("final_conv.gain"), "final_conv.gain"),
        (lambda arrays: arrays.update({"more": torch.zeros(1)}), "more"),
        (lambda arrays: arrays["head.fc.bias"].fill_(float("nan")), "head.fc.bias"),
    ],
)
def test_wrong_array_of_a_folder_is_named(folder, refused, change, expected):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    assert expected in refused("folder")


def flipped(content):
    return content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:]


@pytest.mark.parametrize("change", [flipped, lambda content: content[:100_000], lambda content: b""])
def test_damaged_weights_of_a_folder_are_refused(folder, refused, change):
    weights = folder / "model.safetensors"
    weights.write_bytes(change(weights.read_bytes()))
    assert "model.safetensors" in refused("folder")
    assert main(["convert", "folder", "--out", "back.npz"]) == 1
    assert not Path("back.npz").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(folder, refused, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"has no {name}" in refused("folder")
    if name == "model.safetensors":
        assert main(["convert", "folder", "--out", "back.npz"]) == 1


# --- a checkpoint of train.py


@pytest.fixture
def run(tiny):
    args = argparse.Namespace(
        model="nfnet_f0", model_kwargs={k: v for k, v in golden.TINY.items() if k != "num_classes"}
    )
    return {"epoch": 2, "args": args, "metric": 87.5, "state_dict": dict(tiny().state_dict())}


def saved(run):
    buffer = io.BytesIO()
    torch.save(run, buffer)
    return buffer.getvalue()


def test_flipped_bit_in_a_checkpoint_is_detected(run, refused):
    content = bytearray(saved(run))
    weights = run["state_dict"]["final_conv.weight"].numpy().tobytes()
    content[content.index(weights) + 1000] ^= 1
    Path("run.pth.tar").write_bytes(content)
    assert "run.pth.tar is damaged" in refused("run.pth.tar")


def test_checkpoint_without_checksums_is_published(run, publish):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({**run, "args": vars(run["args"])}, "run.pth.tar")
    finally:
        torch.serialization.set_crc32_options(True)
    assert publish("run.pth.tar", "--dry-run")[0] == 0


def test_error_for_a_truncated_checkpoint_says_so(run, refused):
    good = saved(run)
    for size in (4, len(good) - 1):
        Path("run.pth.tar").write_bytes(good[:size])
        error = refused("run.pth.tar")
        assert "cut off" in error
        assert f"{size:,} bytes" in error


def test_damaged_zip_directory_never_gives_other_weights(run, publish):
    good = saved(run)
    begin, rng = good.index(b"PK\x01\x02"), random.Random(0)
    for _ in range(8):
        bad = bytearray(good)
        bad[rng.randrange(begin, len(good) - 22)] = rng.randrange(256)
        Path("run.pth.tar").write_bytes(bad)
        status, _, error = publish("run.pth.tar", "--dry-run", "--overwrite")
        if status:
            assert error.count("\n") == 1
        else:  # a byte that nobody reads
            loaded = load_file("hub-repos/tiny/model.safetensors")
            assert all(tensor.equal(run["state_dict"][name]) for name, tensor in loaded.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:50],
        lambda text: text[:300] + b"\xff" + text[300:],
        lambda text: b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch owned\x85R.",
        lambda text: b"\x80\x02}q\x00h\x05.",
    ],
)
def test_broken_or_hostile_pickle_in_a_checkpoint_is_refused(run, refused, change):
    with zipfile.ZipFile(io.BytesIO(saved(run))) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile("run.pth.tar", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
    assert "run.pth.tar" in refused("run.pth.tar")
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda run: setattr(run["args"], "model", "resnet50"), "resnet50"),
        (lambda run: setattr(run["args"], "model_kwargs", {"depths": "many"}), "many"),
        (lambda run: setattr(run["args"], "input_size", [3, -1, 5]), "-1"),
        (lambda run: setattr(run["args"], "in_chans", 1), "stem.conv1.weight"),
        (lambda run: setattr(run["args"], "mean", [0.5, 0.5]), "--mean"),
        (lambda run: run.update(state_dict={}), "no arrays"),
        (lambda run: run.update(state_dict_ema={"a": "b"}), "state_dict"),
        (lambda run: run["state_dict"].update({"stem.conv1.weight": torch.eye(3).to_sparse()}), "state_dict"),
        (lambda run: run["state_dict"].update({"head.fc.bias": torch.zeros(1).expand(10**12)}), "'head.fc.bias'"),
        (lambda run: run["state_dict"].pop("head.fc.bias"), "head.fc.weight"),
        (lambda run: run["state_dict"]["head.fc.bias"].fill_(float("nan")), "run.pth.tar has NaN"),
        (lambda run: run.update(more=Hostile()), "open"),
    ],
)
def test_wrong_entry_of_a_checkpoint_is_named(run, refused, change, expected):
    change(run)
    torch.save(run, "run.pth.tar")
    assert expected in refused("run.pth.tar")
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "save",
    [
        lambda: torch.save([1, 2], "run.pth.tar"),
        lambda: zipfile.ZipFile("run.pth.tar", "w").writestr("word/document.xml", "hello"),
        lambda: Path("run.pth.tar").write_bytes(pickle.dumps({"args": 1})),
    ],
    ids=["of torch.save", "zip", "pickle"],
)
def test_other_file_is_refused(refused, save):
    save()
    assert "run.pth.tar" in refused("run.pth.tar")


# --- a state dict


def prefixed(state_dict, prefix):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


FILES = {
    "before torch 1.6": lambda sd: torch.save(sd, "w", _use_new_zipfile_serialization=False),
    "under model": lambda sd: torch.save({"model": sd, "optimizer": {}}, "w"),
    "of PyTorch's tutorial": lambda sd: torch.save({"epoch": 3, "model_state_dict": sd, "loss": 0.1}, "w"),
    "with options of another program": lambda sd: torch.save({"state_dict": sd, "args": {"lr": 0.1}}, "w"),
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
    (file,) = Path().glob("w*")
    assert_publishes(publish, file, *NAMED, model=model.half().float() if save is FILES["half"] else model)
    config = json.loads(Path("hub-repos/tiny/config.json").read_text())
    assert (config["num_classes"], config["model_args"]["in_chans"]) == (3, 1)
    assert config["pretrained_cfg"]["input_size"][0] == 1


def test_the_message_for_a_state_dict_without_a_name_has_options_that_a_shell_passes_on(publish, refused, tiny):
    model = tiny()
    torch.save(model.state_dict(), "w.pth")
    advice = refused("w.pth").partition(" --model ")[2]
    assert "=(" in advice
    assert_publishes(publish, "w.pth", *shlex.split(f"--model {advice}"), model=model)


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (dict, ["--model", "nfnet_f00"], "--model nfnet_f00: no such network; expected one of nfnet_timm, such as"),
        (dict, [*NAMED, "depths=(1,2,3,1)"], "stages.2"),
        (dict, [*NAMED, "width=3"], "--model-kwargs: unknown entry 'width'"),
        (dict, [*NAMED, "alpha=big"], "'big'"),
        (lambda sd: {**sd, "head.fc.bias": sd["head.fc.bias"].long()}, NAMED, "head.fc.bias is torch.int64: expected"),
        (lambda sd: {**sd, **prefixed(sd, "ema.module.")}, NAMED, "'ema.module.'"),
        (lambda sd: {**prefixed(sd, "model."), "head2.weight": torch.ones(1)}, NAMED, "head2.weight"),
        (lambda sd: timm.create_model("test_resnet").state_dict(), NAMED, "stem.conv"),
        (lambda sd: {**sd, "epoch": 3}, NAMED, "'epoch'"),
        (lambda sd: {**sd, "x": Hostile()}, NAMED, "open"),
        (lambda sd: timm.create_model("nfnet_f0", **golden.TINY), NAMED, "NormFreeNet"),
    ],
)
def test_wrong_state_dict_or_option_is_named(refused, tiny, change, options, expected):
    torch.save(change(tiny().state_dict()), "w.pth")
    assert expected in refused("w.pth", *options)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda sd: {**sd, "x": Hostile()}, "open"),
        (lambda sd: {**sd, "more": torch.ones(1)}, "config.json and pytorch_model.bin are of different networks"),
        (lambda sd: {"args": {"model": "nfnet_f0"}, "state_dict": sd}, "is not a state dict of torch.save"),
    ],
)
def test_wrong_pickle_of_a_folder_is_refused(folder, refused, tiny, change, expected):
    (folder / "model.safetensors").unlink()
    torch.save(change(tiny().state_dict()), folder / "pytorch_model.bin")
    assert expected in refused("folder")
    assert not Path("owned").exists()


def test_a_folder_needs_no_name_of_a_network(folder, refused):
    assert "leave out --model" in refused("folder", *NAMED)


# --- class names


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("abcdefghij\n".encode("utf-16"), "UTF-8"),
        (b"a\nb\n", "2 class names"),
        *(("\n".join([*"abcdefghi", name]).encode(), ascii(name)) for name in ("\x1b[31mr", "x\u2028y", "\u202egod")),
        ("\n".join([*"abcdefghi", "\u200d"]).encode(), "visible text"),
    ],
)
def test_invalid_class_names_are_refused(folder, refused, content, expected):
    Path("names.txt").write_bytes(content)
    error = refused("folder", "--class-names", "names.txt")
    assert expected in error
    assert "names.txt" in error


def test_names_are_published_as_written_without_the_descriptions_of_others(folder, publish):
    path, names = folder / "config.json", ["naïve", "日本", "a\u200cb", "crane", "crane", *"fghij"]  # as in ImageNet
    labels = {"label_names": list("abcdefghij"), "label_descriptions": {"a": "the first letter"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **labels}))
    Path("names.txt").write_bytes("\r\n".join(names).encode("utf-8-sig"))
    assert publish("folder", "--dry-run", "--class-names", "names.txt")[0] == 0
    config = json.loads(Path("hub-repos/tiny/config.json").read_text(encoding="utf-8"))
    assert config["label_names"] == names
    assert "label_descriptions" not in config

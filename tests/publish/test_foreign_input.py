"""Invalid or damaged input files give a one-line error, and nothing is published."""

import argparse
import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path

import golden
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from nfnet_timm.cli import main
from nfnet_timm.publish.folder import save_folder

HEAD = "---\nlicense: mit\nlibrary_name: timm\npipeline_tag: image-classification\ntags:\n- timm\n---\n# Mine\n"


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Publish a source, and return the one line that refuses it."""
    monkeypatch.chdir(tmp_path)

    def run(source, *options):
        assert main(["publish", str(source), "org/tiny", "--license", "mit", "--dry-run", *options]) == 1
        error = capsys.readouterr().err
        assert error.startswith("nfnet-timm: error: ")
        assert error.count("\n") == 1
        assert "\x1b" not in error
        assert "weights_only" not in error  # torch's advice to load the file in spite of its content
        assert ".nfnet-timm-" not in error  # the error must not name a temporary folder
        assert not Path("hub-repos/tiny").exists()
        return error

    return run


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "folder"
    save_folder(timm.create_model("nfnet_f0", **golden.TINY), folder, golden.TINY, {"source": "mine.npz"})
    return folder


@pytest.fixture
def folder(saved_once, tmp_path):
    return Path(shutil.copytree(saved_once, tmp_path / "folder"))


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def entry(name, value):
    return lambda config: config.update({name: value})


def cfg(name, value):
    return lambda config: config["pretrained_cfg"].update({name: value})


def argument(name, value):
    return lambda config: config["model_args"].update({name: value})


# --- config.json


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (entry("model_args", None), "model_args"),
        (entry("pretrained_cfg", None), "pretrained_cfg"),
        (entry("architecture", ["nfnet_f0"]), "nfnet_f0"),
        (entry("architecture", "resnet50"), "resnet50"),
        (lambda config: config.pop("architecture"), "None"),
        (entry("num_classes", "10"), "'10'"),
        (entry("num_classes", -1), "num_classes=-1"),
        (entry("num_classes", 7), "head.fc"),
        (entry("label_names", list(range(10))), "label_names"),
        (entry("label_names", "abcdefghij"), "label_names"),
        (entry("label_names", ["cat", "dog"]), "2 class names for 10"),
        (entry("label_names", [*"abcdefghi", ""]), "''"),
        (entry("label_names", [*"abcdefghi", "a\nb"]), r"'a\nb'"),
        (entry("label_names", ["\ufeffa", *"bcdefghij"]), r"\ufeff"),
        (cfg("label_names", ["cat", "dog"]), "2 class names for 10"),
        (entry("label_descriptions", {"a": 1}), "label_descriptions"),
        (cfg("no_such_entry", 1), "no_such_entry"),
        (cfg("input_size", [3, 192]), "[3, 192]"),
        (cfg("input_size", [3, 0, 192]), "[3, 0, 192]"),
        (cfg("mean", "grey"), "'grey'"),
        (cfg("mean", [0.5, 0.5]), "[0.5, 0.5]"),
        (cfg("std", [0, 1, 1]), "[0, 1, 1]"),
        (cfg("std", [float("nan")] * 3), "nan"),
        (cfg("crop_pct", -1), "-1"),
        (cfg("interpolation", "magic"), "'magic'"),
        (cfg("license", {"a": 1}), "license"),
        (cfg("architecture", "nfnet_f6"), "nfnet_f6"),
        (cfg("num_classes", []), "num_classes"),
        (argument("depths", "many"), "'many'"),
        (argument("depths", [1, 1, 1, 2]), "stages.3.1"),
        (argument("num_features", -3), "-3"),
        (argument("in_chans", 1), "stem.conv1"),
        (argument("num_classes", 5), "5"),
        (argument("global_pool", "magic"), "magic"),
        (argument("global_pool", ""), "global_pool is ''"),
        (argument("depths", [1, 1, 1, 10_000_000]), "depths=(1, 1, 1, 10000000): expected at most 1000 blocks"),
        (argument("channels", [10**30, 64, 96, 96]), "a size is too large"),
        (argument("width_factor", 1e306), "a size is too large"),
        (argument("checkpoint_path", "/etc/passwd"), "checkpoint_path"),
    ],
)
def test_config_with_wrong_types_or_network_gives_a_one_line_error_with_the_value(folder, refused, change, expected):
    edit(folder, change)
    error = refused("folder")
    assert expected in error
    assert "folder" in error


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b"\xef\xbb\xbf{}"])
def test_config_that_is_not_an_object_gives_a_one_line_error(folder, refused, text):
    (folder / "config.json").write_bytes(text)
    assert "config.json" in refused("folder")


# --- README.md


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD.replace("mit", "[mit"), "README.md"),
        (HEAD.replace("license: mit", "license: mit: more"), "line 1"),
        (HEAD.replace("license: mit", "license: 5"), "5"),
        (HEAD.replace("- timm", "- 1"), "tags"),
        (HEAD.replace("tags:\n- timm", "tags: timm"), "tags"),
        (HEAD.replace("license: mit", "1: 2"), "README.md"),
        (HEAD.replace("license: mit", "a: !!python/object:os.system {}"), "README.md"),
        (HEAD.replace("license: mit", "model-index:\n- name: a\n  results: [b]\nlicense: mit"), "model_index"),
        ("---\n- a\n---\n", "README.md"),
        ("# No metadata\n", "README.md states no licence"),
        ("\ufeff" + HEAD, "byte order mark"),
        (HEAD + "`hf-hub:org/tiny2`", "README.md loads 'hf-hub:org/tiny2' and not 'hf-hub:org/tiny'"),
    ],
)
def test_invalid_card_metadata_gives_a_one_line_error(folder, refused, text, expected):
    (folder / "README.md").write_text(text)
    assert expected in refused("folder")


def test_card_that_is_not_utf8_gives_a_one_line_error(folder, refused):
    (folder / "README.md").write_bytes(HEAD.encode() + b"\xff")
    assert "README.md" in refused("folder")


def test_card_with_other_keys_of_the_hub_is_accepted(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = HEAD.replace(
        "license: mit", "license: mit\nself: 3\nignore_metadata_errors: true\ndate: 2020-01-01\ninference: off"
    )
    (folder / "README.md").write_text(text)
    assert main(["publish", "folder", "org/tiny", "--dry-run"]) == 0
    assert Path("hub-repos/tiny/README.md").read_text() == text


# --- model.safetensors


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda arrays: arrays.update({"head.fc.bias": torch.zeros(())}), "head.fc.bias"),
        (lambda arrays: arrays.update({"head.fc.bias": torch.zeros(0), "head.fc.weight": torch.zeros(0, 192)}), "0"),
        (lambda arrays: arrays.update({"head.fc.bias": arrays["head.fc.bias"].long()}), "I64"),
        (lambda arrays: arrays.pop("final_conv.gain"), "final_conv.gain"),
        (lambda arrays: arrays.update({"more": torch.zeros(1)}), "more"),
        (lambda arrays: arrays.update({"stem.conv1.weight": torch.zeros(16, 1, 3, 3)}), "stem.conv1.weight"),
        (lambda arrays: arrays.update({"stages.0.0.conv3.weight": torch.zeros(())}), "stages.0.0.conv3.weight"),
        (lambda arrays: arrays["head.fc.bias"].fill_(float("nan")), "head.fc.bias"),
        (lambda arrays: arrays.clear(), "missing"),
    ],
)
def test_weights_of_another_network_give_a_one_line_error_with_the_array(folder, refused, change, expected):
    weights = folder / "model.safetensors"
    arrays = load_file(weights)
    change(arrays)
    save_file(arrays, weights)
    assert expected in refused("folder")


def test_flipped_bit_in_the_weights_of_a_folder_is_detected(folder, refused):
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors" in refused("folder")


def test_truncated_weights_or_another_format_give_a_one_line_error(folder, refused):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for text in (content[:100_000], content[:4], b"", b"hello " * 10, struct.pack("<Q", 1 << 60) + content):
        weights.write_bytes(text)
        assert "model.safetensors" in refused("folder")


# --- checkpoints


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


def test_flipped_bit_in_the_weights_of_a_checkpoint_is_detected(run, tmp_path, refused):
    good = saved(run)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        records = [info for info in archive.infolist() if info.file_size > 100]
    rng = random.Random(0)
    for info in rng.sample(records, 3):
        bad = bytearray(good)
        start = good.index(info.filename.encode()) + len(info.filename)
        begin = start + int.from_bytes(good[start - len(info.filename) - 2 : start - len(info.filename)], "little")
        bad[begin + rng.randrange(info.file_size)] ^= 1 << rng.randrange(8)
        Path("run.pth.tar").write_bytes(bad)
        error = refused("run.pth.tar")
        assert "run.pth.tar is damaged" in error
        assert info.filename in error


def save_without_crcs(run):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(run, "run.pth.tar")
    finally:
        torch.serialization.set_crc32_options(True)


ACCEPTED = {
    "without CRCs": save_without_crcs,
    "before torch 1.6": lambda run: torch.save(run, "run.pth.tar", _use_new_zipfile_serialization=False),
    "options in a dict": lambda run: torch.save({**run, "args": vars(run["args"])}, "run.pth.tar"),
}


@pytest.mark.parametrize("save", ACCEPTED.values(), ids=ACCEPTED)
def test_other_forms_of_a_checkpoint_are_published(run, tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save(run)
    assert main(["publish", "run.pth.tar", "org/tiny", "--license", "mit", "--dry-run"]) == 0


def test_error_for_a_truncated_checkpoint_says_so(run, refused):
    good = saved(run)
    for size in (4, 100, len(good) // 2, len(good) - 1):
        Path("run.pth.tar").write_bytes(good[:size])
        error = refused("run.pth.tar")
        assert "cut off" in error
        assert f"{size:,} bytes" in error


def test_damaged_zip_directory_gives_a_one_line_error(run, refused):
    good = saved(run)
    begin, rng = good.index(b"PK\x01\x02"), random.Random(0)
    for _ in range(20):
        bad = bytearray(good)
        bad[rng.randrange(begin, len(good) - 22)] = rng.randrange(256)
        Path("run.pth.tar").write_bytes(bad)
        if main(["publish", "run.pth.tar", "org/tiny", "--license", "mit", "--dry-run", "--overwrite"]):
            continue
        loaded = load_file("hub-repos/tiny/model.safetensors")  # a byte that nobody reads
        assert all(tensor.equal(run["state_dict"][name]) for name, tensor in loaded.items())


def test_broken_or_hostile_pickle_gives_a_one_line_error(run, refused):
    good = saved(run)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    text, rng = records[name], random.Random(0)
    broken = [
        text[:0],
        text[:50],
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02}q\x00h\x05.",
        b"\x80\x02]a.",
    ]
    broken += [text[:begin] + b"\xff" + text[begin:] for begin in rng.sample(range(len(text)), 8)]
    for content in broken:
        with zipfile.ZipFile("run.pth.tar", "w") as archive:
            for each, value in {**records, name: content}.items():
                archive.writestr(each, value)
        assert "run.pth.tar" in refused("run.pth.tar")


class Hostile:
    def __reduce__(self):
        return open, ("owned", "w")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda run: run.update(args=3), "int"),
        (lambda run: run.update(args=argparse.Namespace()), "args"),
        (lambda run: setattr(run["args"], "model", 3), "model is 3"),
        (lambda run: setattr(run["args"], "model", "resnet50"), "resnet50"),
        (lambda run: setattr(run["args"], "model_kwargs", {"depths": "many"}), "many"),
        (lambda run: setattr(run["args"], "model_kwargs", {"checkpoint_path": "x"}), "checkpoint_path"),
        (lambda run: setattr(run["args"], "input_size", [3]), "input_size"),
        (lambda run: setattr(run["args"], "input_size", [3, -1, 5]), "-1"),
        (lambda run: setattr(run["args"], "in_chans", 1), "stem.conv1.weight"),
        (lambda run: setattr(run["args"], "mean", [0.5, 0.5]), "--mean"),
        (lambda run: setattr(run["args"], "std", [0.0]), "std"),
        (lambda run: setattr(run["args"], "gp", ""), "global_pool is ''"),
        (lambda run: run.update(state_dict=[1]), "state_dict"),
        (lambda run: run.update(state_dict={}), "no arrays"),
        (lambda run: run.update(state_dict={1: torch.ones(1)}), "state_dict"),
        (lambda run: run.update(state_dict_ema={"a": "b"}), "state_dict"),
        (lambda run: run["state_dict"].update({"stem.conv1.weight": torch.eye(3).to_sparse()}), "state_dict"),
        (lambda run: run["state_dict"].update({"head.fc.bias": torch.tensor(1.0)}), "head.fc.bias"),
        (lambda run: run["state_dict"].pop("head.fc.bias"), "head.fc.weight"),
        (
            lambda run: run["state_dict"].update({"final_conv.gain": torch.ones(192, dtype=torch.complex64)}),
            "final_conv.gain is torch.complex64",
        ),
        (lambda run: run["state_dict"]["head.fc.bias"].fill_(float("nan")), "run.pth.tar has NaN"),
        (lambda run: run.update(more=Hostile()), "open"),
    ],
)
def test_checkpoint_with_wrong_types_or_shapes_gives_a_one_line_error_with_the_value(
    run, tmp_path, refused, change, expected
):
    change(run)
    torch.save(run, "run.pth.tar")
    assert expected in refused("run.pth.tar")
    assert not Path("owned").exists()


def test_other_file_of_torch_save_gives_a_one_line_error(refused):
    for content in ([1, 2], None, {"state_dict": {}}, torch.ones(3)):
        torch.save(content, "run.pth.tar")
        assert "run.pth.tar" in refused("run.pth.tar")
    with zipfile.ZipFile("run.pth.tar", "w") as archive:
        archive.writestr("word/document.xml", "hello")
    assert "run.pth.tar" in refused("run.pth.tar")
    Path("run.pth.tar").write_bytes(pickle.dumps({"args": 1}))
    assert "run.pth.tar" in refused("run.pth.tar")


# --- class names of a file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("abcdefghij\n".encode("utf-16"), "UTF-8"),
        (b"a\nb\n", "2 class names"),
        (b"", "0 class names"),
        ("\n".join([*"abcdefghi", "\x1b[31mred"]).encode(), "red"),
        ("\n".join([*"abcdefghi", "x\u2028y"]).encode(), "2028"),
        ("\n".join([*"abcdefghi", "\u202egod"]).encode(), "202e"),
        ("\n".join([*"abcdefghi", "\u200b"]).encode(), "200b"),
        ("\n".join([*"abcdefgh", "crane", "cra\u200bne"]).encode(), "'cra\\u200bne'"),
    ],
)
def test_invalid_class_names_give_a_one_line_error(folder, refused, content, expected):
    Path("names.txt").write_bytes(content)
    error = refused("folder", "--class-names", "names.txt")
    assert expected in error
    assert "names.txt" in error


def test_names_are_published_as_written_without_a_byte_order_mark(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["naïve", "日本", "a\u200cb", "crane", "crane", *"fghij"]  # ImageNet has two classes "crane"
    Path("names.txt").write_bytes("\r\n".join(names).encode("utf-8-sig"))
    assert main(["publish", "folder", "org/tiny", "--license", "mit", "--dry-run", "--class-names", "names.txt"]) == 0
    assert json.loads(Path("hub-repos/tiny/config.json").read_text(encoding="utf-8"))["label_names"] == names


def test_descriptions_are_removed_with_the_names_they_describe(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit(folder, entry("label_names", list("abcdefghij")))
    edit(folder, entry("label_descriptions", {"a": "the first letter"}))
    Path("names.txt").write_text("\n".join("klmnopqrst"))
    assert main(["publish", "folder", "org/tiny", "--license", "mit", "--dry-run", "--class-names", "names.txt"]) == 0
    config = json.loads(Path("hub-repos/tiny/config.json").read_text())
    assert config["label_names"] == list("klmnopqrst")
    assert "label_descriptions" not in config

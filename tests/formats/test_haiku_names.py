"""Conversion between the authors' trees and our state dicts is exact; unknown arrays raise an error with their name."""

import copy
import hashlib
import pickle

import golden
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from nfnet_timm.cli import main
from nfnet_timm.formats.authors import load_state_dict
from nfnet_timm.formats.haiku_names import from_haiku, to_haiku
from nfnet_timm.formats.haiku_reader import read_tree
from nfnet_timm.formats.haiku_writer import write_tree
from nfnet_timm.publish.convert import convert_to_file, convert_to_folder

TREE = golden.tree("nfnet_tiny_train")


@pytest.fixture
def tree():
    return copy.deepcopy(TREE)


def test_round_trip_is_exact_to_the_bit(tree):
    golden.assert_same_tree(to_haiku(from_haiku(tree)), TREE)


def test_every_array_is_new_and_contiguous(tree):
    """This includes an array of one channel, whose transpose has the same order in memory."""
    tree["NFNet/~/linear"] = {"w": np.ones((192, 1), np.float32), "b": np.zeros(1, np.float32)}
    tree["NFNet/~/nf_block/~/conv0"]["w"] = np.ones((1, 1, 1, 32), np.float32)
    tree["NFNet/~/nf_block/~/conv1"]["w"] = np.ones((3, 3, 0, 8), np.float32)
    for name, tensor in from_haiku(tree).items():
        tensor.fill_(7)
        assert tensor.is_contiguous(), name
    assert not any((array == 7).any() for params in tree.values() for array in params.values())


def test_the_largest_float32_values_are_accepted(tree):
    tree["NFNet/~/linear"]["w"][:] = np.float32(3e38)  # their sum is not
    assert from_haiku(tree)["head.fc.weight"].max() == np.float32(3e38)


def test_state_dict_of_timm_converts_to_haiku():
    state_dict = timm.create_model("dm_nfnet_f0", device="meta").to_empty(device="cpu").state_dict()
    shapes = {m: {p: list(a.shape) for p, a in ps.items()} for m, ps in to_haiku(state_dict).items()}
    assert shapes == golden.shapes("nfnet_f0")


def test_kernels_are_transposed_from_hwio_and_matrices_from_io(tree):
    state_dict = from_haiku(tree)
    kernel = tree["NFNet/~/nf_block_1/~/conv1b"]["w"]
    ours = state_dict["stages.1.0.conv2b.weight"].numpy()
    assert ours[3, 5, 0, 2] == kernel[0, 2, 5, 3]
    matrix = tree["NFNet/~/nf_block_1/~/squeeze_excite/~/linear"]["w"]
    assert state_dict["stages.1.0.attn_last.fc1.weight"][4, 7, 0, 0].item() == matrix[7, 4]


def drop(tree, module, param=None):
    if param:
        del tree[module][param]
    else:
        del tree[module]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: drop(t, "NFNet/~/linear"), "linear/w is missing"),
        (lambda t: drop(t, "NFNet/~/linear", "b"), "linear/b is missing"),
        (lambda t: drop(t, "NFNet/~/stem_conv0"), "stem.conv1.weight.*missing"),
        (lambda t: drop(t, "NFNet/~/final_conv", "gain"), "final_conv.gain is missing"),
        (lambda t: drop(t, "NFNet/~/nf_block_3/~/conv1b"), "stages.2.0.conv2b.weight is missing"),
        (lambda t: drop(t, "NFNet/~/nf_block_2"), "block 2 is missing"),
        (lambda t: drop(t, "NFNet/~/nf_block_4", "skip_gain"), "stages.2.1.skipinit_gain is missing"),
        (lambda t: t.update({"NFNet/~/extra": {"w": np.zeros((1, 1, 2, 2), np.float32)}}), "surplus module.*extra"),
        (lambda t: t["NFNet/~/linear"].update(scale=np.zeros(3, np.float32)), "surplus array NFNet/~/linear/scale"),
        (lambda t: t.update({"BatchNorm": {"b": np.zeros(3, np.float32)}}), "exactly one of NFNet"),
        (
            lambda t: t["NFNet/~/final_conv"].update(bias=np.zeros(7, np.float32)),
            r"final_conv.bias has shape \(7,\), expected \(192,\)",
        ),
        (lambda t: t["NFNet/~/linear"].update(b=np.zeros(9, np.float32)), r"\[10\] rows and \[9\] biases"),
        (lambda t: t["NFNet/~/linear"].update(w=np.full((192, 10), np.nan, np.float32)), "1920 NaN"),
        (lambda t: t["NFNet/~/linear"].update(w=np.zeros((192, 10))), "float64: expected float32"),
    ],
)
def test_tree_of_another_network_is_refused_and_nothing_is_written(tree, tmp_path, change, message):
    change(tree)
    path = tmp_path / "F0_haiku.npz"
    path.write_bytes(pickle.dumps(tree))
    with pytest.raises(ValueError, match=message) as error:
        convert_to_folder(path, tmp_path / "out")
    assert str(path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["F0_haiku.npz"]


@pytest.mark.parametrize("name", ["haiku_2021", "dill2025_dict", "dill2025_flatmap"])
def test_converted_file_loads_and_converts_back_exactly(tmp_path, name):
    path = golden.DATA / f"nfnet_tiny_{name}.npz"
    source = convert_to_folder(path, tmp_path / "out")
    assert source.metadata["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.metadata["source_md5"] == hashlib.md5(path.read_bytes()).hexdigest()
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    golden.assert_same_tree(to_haiku(model.state_dict()), TREE)
    convert_to_file(tmp_path / "out", tmp_path / "back.npz")
    golden.assert_same_tree(read_tree(tmp_path / "back.npz"), TREE)


@pytest.mark.parametrize("name", ["dm_nf_seresnet50", "dm_nf_regnet_b0"])
def test_other_families_are_recognised_from_their_tree(tmp_path, name):
    shapes = to_haiku(timm.create_model(name, depths=(1, 1, 1, 1), num_classes=10).state_dict())
    tree = {m: {p: golden.parameter(m, p, list(a.shape)) for p, a in params.items()} for m, params in shapes.items()}
    write_tree(tree, tmp_path / "tree.npz")
    source = convert_to_folder(tmp_path / "tree.npz", tmp_path / "out")
    assert source.architecture == name
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    golden.assert_same_tree(to_haiku(loaded.state_dict()), tree)


def test_overlay_loads_a_file_with_other_classes_and_channels():
    file = str(golden.DATA / "nfnet_tiny_haiku_2021.npz")
    expected = load_state_dict(file)
    for num_classes, in_chans in ((10, 3), (0, 3), (4, 1)):
        model = timm.create_model(
            "nfnet_f0",
            pretrained=True,
            pretrained_cfg_overlay={"file": file},
            **{**golden.TINY, "num_classes": num_classes, "in_chans": in_chans},
        )
        assert torch.equal(model.final_conv.weight, expected["final_conv.weight"])
        assert torch.equal(model.stem.conv1.weight, expected["stem.conv1.weight"]) == (in_chans == 3)
        if num_classes == 10:
            assert torch.equal(model.head.fc.weight, expected["head.fc.weight"])
        assert not any(p.is_meta for p in model.parameters())


def test_file_loads_as_a_timm_checkpoint(tiny):
    from timm.models import load_checkpoint

    model = tiny()
    load_checkpoint(model, str(golden.DATA / "nfnet_tiny_haiku_2021.npz"))
    golden.assert_same_tree(to_haiku(model.state_dict()), TREE)


def test_error_for_another_variant_names_both_variants():
    file = str(golden.DATA / "nfnet_tiny_haiku_2021.npz")
    with pytest.raises(ValueError, match=r"nfnet_tiny_haiku_2021.npz: .*does not fit nfnet_f1.*depths=\(1, 2, 2, 1\)"):
        timm.create_model("nfnet_f1", pretrained=True, pretrained_cfg_overlay={"file": file})


@pytest.mark.parametrize(
    ("module", "param", "shape"),
    [
        ("stem_conv0", "w", ()),
        ("stem_conv0", "w", (0, 0, 0, 0)),
        ("stem_conv0", "gain", (1, 1)),
        ("linear", "w", (2, 0)),
        ("linear", "b", ()),
        ("linear", "b", (0,)),
        ("nf_block", "skip_gain", (3,)),
        ("nf_block/~/conv2", "w", (2, 2, 2, 2)),
        ("nf_block/~/conv1", "bias", (0,)),
        ("nf_block/~/squeeze_excite/~/linear", "w", (1, 1)),
    ],
)
def test_array_of_wrong_shape_gives_a_one_line_error_with_its_name(tree, tmp_path, capsys, module, param, shape):
    tree[f"NFNet/~/{module}"][param] = np.ones(shape, np.float32)
    write_tree(tree, tmp_path / "x.npz")
    assert main(["convert", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "x.npz") in error
    assert str(shape) in error or "shape" in error or "channels" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("stem.conv1.weight", ()),
        ("stem.conv1.weight", (1, 1, 1, 1, 1)),
        ("head.fc.bias", (0,)),
        ("stages.1.0.conv2.gain", (1, 2, 3)),
        ("stages.0.0.skipinit_gain", (0,)),
    ],
)
def test_folder_with_an_array_of_wrong_shape_is_not_converted_back(tree, tmp_path, capsys, key, shape):
    state_dict = from_haiku(tree)
    state_dict[key] = torch.ones(shape)
    save_file(state_dict, tmp_path / "model.safetensors")
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "x.npz")]) == 1
    error = capsys.readouterr().err
    assert key.removesuffix(".bias") in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("key", ["", "x", "stages", "stages.0", "stages.x.y.weight", "stages.9.9.conv1.weight"])
def test_folder_with_an_array_of_unknown_name_is_not_converted_back(tree, tmp_path, capsys, key):
    save_file({**from_haiku(tree), key: torch.ones(3)}, tmp_path / "model.safetensors")
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "x.npz")]) == 1
    error = capsys.readouterr().err
    assert key in error
    assert error.count("\n") == 1


def test_folder_without_some_arrays_is_not_converted_back(tree, tmp_path, capsys):
    state_dict = from_haiku(tree)
    del state_dict["stages.1.0.conv1.gain"]
    for arrays in ({}, state_dict):
        save_file(arrays, tmp_path / "model.safetensors")
        assert main(["convert", str(tmp_path), "--out", str(tmp_path / "x.npz")]) == 1
        assert not (tmp_path / "x.npz").exists()
    assert "stages.1.0.conv1.gain is missing" in capsys.readouterr().err

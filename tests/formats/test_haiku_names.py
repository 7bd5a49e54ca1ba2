"""Conversion between the authors' trees and our state dicts is exact; unknown arrays raise an error with their name."""

import copy
import hashlib
import re

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


REFUSED = [  # Haiku's module, parameter, the new array or None for no array, and the message
    ("linear", None, None, "linear/w is missing"),
    ("linear", "b", None, "linear/b is missing"),
    ("stem_conv0", None, None, "stem.conv1.weight.*missing"),
    ("nf_block_3/~/conv1b", None, None, "stages.2.0.conv2b.weight is missing"),
    ("nf_block_2", None, None, "block 2 is missing"),
    ("nf_block_4", "skip_gain", None, "stages.2.1.skipinit_gain is missing"),
    ("extra", "w", np.ones((1, 1, 2, 2)), "surplus module.*extra"),
    ("linear", "scale", np.ones(3), "surplus array NFNet/~/linear/scale"),
    ("../BatchNorm", "b", np.ones(3), "exactly one of NFNet"),
    ("linear", "b", np.ones(9), r"\[10\] rows and \[9\] biases"),
    ("linear", "b", np.ones(0), "head.fc.bias"),
    ("linear", "w", np.full((192, 10), np.nan), "1920 NaN"),
    ("stem_conv0", "w", np.ones(()), r"stem_conv0/w has shape \(\): expected 4 dimensions"),
    ("stem_conv0", "w", np.ones((0, 0, 0, 0)), r"stem.conv1.weight has shape \(0, 0, 0, 0\)"),
    ("nf_block", "skip_gain", np.ones(3), r"skip_gain has shape \(3,\): expected 0 dimensions"),
    ("nf_block/~/squeeze_excite/~/linear", "w", np.ones((1, 1)), r"attn_last.fc1.weight has shape \(1, 1, 1, 1\)"),
]


@pytest.mark.parametrize(("module", "param", "array", "message"), REFUSED)
def test_tree_of_another_network_gives_a_one_line_error(tree, tmp_path, capsys, module, param, array, message):
    module = module.removeprefix("../") if module.startswith("../") else f"NFNet/~/{module}"
    if array is not None:
        tree.setdefault(module, {})[param] = array.astype(np.float32)
    elif param:
        del tree[module][param]
    else:
        del tree[module]
    write_tree(tree, tmp_path / "x.npz")
    assert main(["convert", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert str(tmp_path / "x.npz") in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_converted_file_loads_and_converts_back_exactly(tmp_path):
    path = golden.DATA / "nfnet_tiny_haiku_2021.npz"
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


@pytest.mark.parametrize("argument", ["pretrained_cfg_overlay", "pretrained_cfg"])
def test_create_model_loads_a_file_with_other_classes_and_channels(argument):
    file = str(golden.DATA / "nfnet_tiny_haiku_2021.npz")
    cfg = {**timm.get_pretrained_cfg("nfnet_f0").to_dict(), "file": file}
    expected = load_state_dict(file)
    for num_classes, in_chans in ((0, 3), (4, 1)):
        model = timm.create_model(
            "nfnet_f0",
            pretrained=True,
            **{argument: cfg},
            **{**golden.TINY, "num_classes": num_classes, "in_chans": in_chans},
        )
        assert torch.equal(model.final_conv.weight, expected["final_conv.weight"])
        assert torch.equal(model.stem.conv1.weight, expected["stem.conv1.weight"]) == (in_chans == 3)
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


CHANGED = [  # an array of a folder that is converted back, its new shape or None for no array, and the message
    ("stem.conv1.weight", (), "stem.conv1.weight has shape .*expected 4 dimensions"),
    ("stages.1.0.conv2.gain", (1, 2, 3), "stages.1.0.conv2.gain has shape .*expected 1 or 4 dimensions"),
    ("stages.9.9.conv1.weight", (3,), "stages.9.9.conv1.weight has shape .*expected 4 dimensions"),
    ("x", (3,), "surplus array x"),
    ("head.fc.bias", (0,), "head.fc"),
    ("stages.1.0.conv1.gain", None, "stages.1.0.conv1.gain is missing"),
]


@pytest.mark.parametrize(("key", "shape", "message"), CHANGED)
def test_folder_of_another_network_is_not_converted_back(tree, tmp_path, capsys, key, shape, message):
    state_dict = from_haiku(tree)
    if shape is None:
        del state_dict[key]
    else:
        state_dict[key] = torch.ones(shape)
    save_file(state_dict, tmp_path / "model.safetensors")
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "x.npz")]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "x.npz").exists()


def test_arrays_that_are_not_floats_are_not_converted_back(tree):
    with pytest.raises(ValueError, match="head.fc.bias is int64: expected float32, bfloat16 or float16"):
        to_haiku({**from_haiku(tree), "head.fc.bias": torch.ones(10, dtype=torch.int64)})

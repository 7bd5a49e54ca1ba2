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

from nfnet_timm.formats.authors import load_state_dict
from nfnet_timm.formats.haiku_names import from_haiku, to_haiku
from nfnet_timm.formats.haiku_reader import read_tree
from nfnet_timm.formats.haiku_writer import write_tree
from nfnet_timm.publish.convert import convert_to_file, convert_to_folder

TREE = golden.tree("nfnet_tiny_train")
SOURCE = str(golden.DATA / "nfnet_tiny_haiku_2021.npz")


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


REFUSED = [  # Haiku's module, parameter, the new array or None for no array, and the message
    ("linear", None, None, "linear/w is missing"),
    ("stem_conv0", None, None, "stem.conv1.weight.*missing"),
    ("nf_block_2", None, None, "block 2 is missing"),
    ("nf_block_4", "skip_gain", None, "stages.2.1.skipinit_gain is missing"),
    ("extra", "w", np.ones((1, 1, 2, 2)), "surplus module.*extra"),
    ("linear", "scale", np.ones(3), "surplus array NFNet/~/linear/scale"),
    ("BatchNorm", "b", np.ones(3), "exactly one of NFNet"),
    ("linear", "b", np.ones(9), r"\[10\] rows and \[9\] biases"),
    ("linear", "w", np.full((192, 10), np.nan), "1920 NaN"),
    ("stem_conv0", "w", np.ones(()), r"stem_conv0/w has shape \(\): expected 4 dimensions"),
    ("stem_conv0", "w", np.ones((0, 0, 0, 0)), r"stem.conv1.weight has shape \(0, 0, 0, 0\)"),
    ("nf_block", "skip_gain", np.ones(3), r"skip_gain has shape \(3,\): expected 0 dimensions"),
    ("nf_block/~/squeeze_excite/~/linear", "w", np.ones((1, 1)), r"attn_last.fc1.weight has shape \(1, 1, 1, 1\)"),
]


@pytest.mark.parametrize(("module", "param", "array", "message"), REFUSED)
def test_tree_of_another_network_gives_a_one_line_error(tree, tmp_path, refused, module, param, array, message):
    module = module if module == "BatchNorm" else f"NFNet/~/{module}"
    if array is not None:
        tree.setdefault(module, {})[param] = array.astype(np.float32)
    elif param:
        del tree[module][param]
    else:
        del tree[module]
    write_tree(tree, tmp_path / "x.npz")
    assert re.fullmatch(f"nfnet-timm: error: x.npz.*{message}.*\n", refused("x.npz"))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nfnet_f0", golden.TINY),
        ("dm_nf_seresnet50", {"depths": (1, 1, 1, 1), "num_classes": 10}),
        ("dm_nf_regnet_b0", {"depths": (1, 1, 1, 1), "num_classes": 10}),
    ],
)
def test_file_of_each_family_converts_to_a_folder_that_loads_and_back_exactly(tmp_path, name, arguments):
    shapes = to_haiku(timm.create_model(name, **arguments).state_dict())
    tree = {m: {p: golden.parameter(m, p, list(a.shape)) for p, a in params.items()} for m, params in shapes.items()}
    path, folder = tmp_path / "tree.npz", tmp_path / "out"
    write_tree(tree, path)
    source = convert_to_folder(path, folder)
    assert source.architecture == name
    assert source.metadata["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.metadata["source_md5"] == hashlib.md5(path.read_bytes()).hexdigest()
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    golden.assert_same_tree(to_haiku(loaded.state_dict()), tree)
    convert_to_file(folder, tmp_path / "back.npz")
    golden.assert_same_tree(read_tree(tmp_path / "back.npz"), tree)


@pytest.mark.parametrize(
    ("argument", "num_classes", "in_chans"), [("pretrained_cfg_overlay", 0, 3), ("pretrained_cfg", 4, 1)]
)
def test_create_model_loads_a_file_with_other_classes_and_channels(argument, num_classes, in_chans):
    cfg = {**timm.get_pretrained_cfg("nfnet_f0").to_dict(), "file": SOURCE}
    kwargs = {**golden.TINY, "num_classes": num_classes, "in_chans": in_chans, argument: cfg}
    model = timm.create_model("nfnet_f0", pretrained=True, **kwargs)
    expected = load_state_dict(SOURCE)
    assert torch.equal(model.final_conv.weight, expected["final_conv.weight"])
    assert torch.equal(model.stem.conv1.weight, expected["stem.conv1.weight"]) == (in_chans == 3)
    assert not any(p.is_meta for p in model.parameters())


def test_file_loads_as_a_timm_checkpoint(tiny):
    model = tiny()
    timm.models.load_checkpoint(model, SOURCE)
    golden.assert_same_tree(to_haiku(model.state_dict()), TREE)


def test_error_for_another_variant_names_both_variants():
    with pytest.raises(ValueError, match=r"nfnet_tiny_haiku_2021.npz: .*does not fit nfnet_f1.*depths=\(1, 2, 2, 1\)"):
        timm.create_model("nfnet_f1", pretrained=True, pretrained_cfg_overlay={"file": SOURCE})


CHANGED = [  # an array of a folder that is converted back, its new value or None for no array, and the message
    ("stem.conv1.weight", torch.ones(()), "stem.conv1.weight has shape .*expected 4 dimensions"),
    ("stages.1.0.conv2.gain", torch.ones(1, 2, 3), "stages.1.0.conv2.gain has shape .*expected 1 or 4 dimensions"),
    ("stages.9.9.conv1.weight", torch.ones(3), "stages.9.9.conv1.weight has shape .*expected 4 dimensions"),
    ("x", torch.ones(3), "surplus array x"),
    ("head.fc.bias", torch.ones(0), "head.fc"),
    ("head.fc.bias", torch.ones(10).double(), "head.fc.bias is float64: expected float32, bfloat16 or float16"),
    ("stages.1.0.conv1.gain", None, "stages.1.0.conv1.gain is missing"),
]


@pytest.mark.parametrize(("key", "value", "message"), CHANGED)
def test_folder_of_another_network_is_not_converted_back(tree, tmp_path, refused, key, value, message):
    state_dict = {**from_haiku(tree), key: value}
    save_file(
        {name: tensor for name, tensor in state_dict.items() if tensor is not None}, tmp_path / "model.safetensors"
    )
    assert re.fullmatch(f"nfnet-timm: error: .*{message}.*\n", refused(".", "x.npz"))

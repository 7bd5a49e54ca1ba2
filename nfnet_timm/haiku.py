"""The authors' parameter trees and ours: one table of names, four rules of layout, both directions, exact to the bit.

Source of the names and layouts: deepmind-research/nfnets/nfnet.py, nf_resnet.py and nf_regnet.py under Haiku.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from nfnet_timm.folder import identify, save_folder
from nfnet_timm.haiku_file import Tree, read_tree, write_tree
from nfnet_timm.pretrained import check_state_dict, describe
from nfnet_timm.variants import VARIANTS

__all__ = [
    "convert_to_file",
    "convert_to_folder",
    "from_haiku",
    "load_model",
    "load_state_dict",
    "read_tree",
    "to_haiku",
    "write_tree",
]

# Haiku's module in a block -> ours. Squeeze-excite is "attn" in NF-RegNets.
_BLOCK = {
    "conv0": "conv1",
    "conv1": "conv2",
    "conv1b": "conv2b",
    "conv2": "conv3",
    "conv_shortcut": "downsample.conv",
    "squeeze_excite/~/linear": "attn_last.fc1",
    "squeeze_excite/~/linear_1": "attn_last.fc2",
}
_OUTER = {
    "stem_conv0": "stem.conv1",
    "stem_conv1": "stem.conv2",
    "stem_conv2": "stem.conv3",
    "stem_conv3": "stem.conv4",
    "initial_conv": "stem.conv",
    "final_conv": "final_conv",
    "linear": "head.fc",
}
# The root module, and the name of its blocks.
_ROOTS = {"NFNet": "nf_block", "NF_ResNet": "nf_res_block", "NF_RegNet": "nf_block"}
_PARAMS = {"w": "weight", "b": "bias", "gain": "gain", "bias": "bias"}


def from_haiku(tree: Tree) -> dict[str, Tensor]:
    """Return the state dict of ``tree``: our names, OIHW and OI layouts, new float32 tensors.

    Raises:
        ValueError: If an array has a name that none of the three networks has, or two would get the same name.
    """
    roots = {module.split("/")[0] for module in tree}
    if len(roots) != 1 or not roots <= set(_ROOTS):
        raise ValueError(f"root modules {sorted(roots)[:5]}: expected exactly one of {', '.join(_ROOTS)}")
    (root,) = roots
    stages = _stages(tree, root)
    state_dict: dict[str, Tensor] = {}
    for module, params in tree.items():
        ours = _module_name(module, root, stages)
        for param, array in params.items():
            if param == "skip_gain" and re.fullmatch(r"stages\.\d\.\d+", ours):
                name = f"{ours}.skipinit_gain"
            elif param in _PARAMS:
                name = f"{ours}.{_PARAMS[param]}"
            else:
                raise ValueError(f"surplus array {module}/{param}: expected the parameters {', '.join(_PARAMS)}")
            if name in state_dict:
                raise ValueError(f"two arrays for {name}, the second is {module}/{param}")
            state_dict[name] = _to_torch(array, squeeze_excite=".attn" in name)
    for name in ("head.fc.weight", "head.fc.bias"):
        if name not in state_dict:
            raise ValueError(f"{root}/~/linear/{'w' if name.endswith('weight') else 'b'} is missing")
    return state_dict


def to_haiku(state_dict: Mapping[str, Tensor]) -> Tree:
    """Return the authors' tree of a state dict of ours, or of timm's ``dm_nfnet_*``: the inverse of ``from_haiku``.

    Raises:
        ValueError: If an array has a name that none of the three networks has.
    """
    root = "NFNet" if "stem.conv1.weight" in state_dict else "NF_ResNet"
    if root == "NF_ResNet" and "final_conv.weight" in state_dict:
        root = "NF_RegNet"
    blocks = sorted({tuple(map(int, key.split(".")[1:3])) for key in state_dict if key.startswith("stages.")})
    index = {f"stages.{stage}.{block}": i for i, (stage, block) in enumerate(blocks)}
    outer = {ours: haiku for haiku, ours in _OUTER.items()}
    inner = {ours: haiku for haiku, ours in _BLOCK.items()}
    tree: Tree = {}
    for key, tensor in state_dict.items():
        ours, param = key.rsplit(".", 1)
        block = ".".join(ours.split(".")[:3])
        linear = ours.endswith(("fc", "fc1", "fc2"))
        try:
            if ours in outer:
                module = f"{root}/~/{outer[ours]}"
            else:
                i = index[block]
                module = f"{root}/~/{_ROOTS[root]}" + (f"_{i}" if i else "")
                if ours != block:
                    module += "/~/" + inner[ours.removeprefix(block + ".").replace("attn.", "attn_last.")]
            if param == "skipinit_gain":
                param = "skip_gain"
            else:
                param = {"weight": "w", "bias": "b" if linear else "bias", "gain": "gain"}[param]
        except KeyError:
            raise ValueError(f"surplus array {key}: no network of the authors has it") from None
        tree.setdefault(module, {})[param] = _to_numpy(tensor, param, linear)
    return tree


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in one of the authors' files.

    Raises:
        ValueError: If the file cannot be read (see ``read_tree``) or holds no network (see ``from_haiku``).
    """
    tree = read_tree(path)
    try:
        return from_haiku(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_model(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the model in one of the authors' files, and the arguments of ``create_model`` beside its name.

    Raises:
        ValueError: If the file holds none of the authors' networks.
    """
    state_dict = load_state_dict(path)
    try:
        name, arguments = describe(state_dict)
        size = VARIANTS[name].train_size
        model: Any = timm.create_model(
            name,
            device="meta",
            pretrained_cfg_overlay={
                "num_classes": arguments.get("num_classes", 1000),
                "input_size": (arguments.get("in_chans", 3), size, size),
            },
            **arguments,
        )
        model.load_state_dict(check_state_dict(state_dict, model, name))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return model, arguments


def convert_to_folder(source: Path, folder: Path) -> tuple[Any, str]:
    """Write one of the authors' files as a folder that timm loads; return the model and the SHA-256 of the file.

    Raises:
        ValueError: If the file holds none of the authors' networks, or the folder other files; nothing is written then.
    """
    model, arguments = load_model(source)
    metadata = identify(source)
    save_folder(model, folder, arguments, metadata)
    return model, metadata["source_sha256"]


def convert_to_file(folder: Path, file: Path) -> Tree:
    """Write the weights of a folder as a file that the authors' ``load_haiku_file`` reads, and return the tree.

    Raises:
        ValueError: If the folder has no model.safetensors, or other arrays than the authors' networks.
    """
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise ValueError(f"{folder} has no model.safetensors: expected a folder written by `nfnet-timm convert`")
    tree = to_haiku(load_file(weights))
    write_tree(tree, file)
    return tree


def _blocks(tree: Tree, root: str) -> Iterator[int]:
    pattern = re.compile(rf"{root}/~/{_ROOTS[root]}(?:_([1-9]\d*))?")
    for module in tree:
        match = pattern.fullmatch(module)
        if match:
            yield int(match[1] or 0)


def _stages(tree: Tree, root: str) -> dict[int, str]:
    """Return the name of each block here, by its number there: a stage begins where the shortcut has a convolution."""
    names = {}
    stage, block = -1, 0
    for expected, i in enumerate(sorted(_blocks(tree, root))):
        module = f"{root}/~/{_ROOTS[root]}" + (f"_{i}" if i else "")
        if i != expected:
            raise ValueError(f"block {expected} is missing: {module} follows block {expected - 1}")
        if f"{module}/~/conv_shortcut" in tree:
            stage, block = stage + 1, 0
        names[i] = f"stages.{max(stage, 0)}.{block}"
        block += 1
    return names


def _module_name(module: str, root: str, stages: dict[int, str]) -> str:
    path = module.removeprefix(f"{root}/~/")
    if path in _OUTER:
        return _OUTER[path]
    match = re.fullmatch(rf"{_ROOTS[root]}(?:_([1-9]\d*))?(?:/~/(.+))?", path)
    if match and int(match[1] or 0) in stages and (match[2] is None or match[2] in _BLOCK):
        block = stages[int(match[1] or 0)]
        if match[2] is None:
            return block
        inner = _BLOCK[match[2]]
        return f"{block}.{inner.replace('attn_last', 'attn') if root == 'NF_RegNet' else inner}"
    raise ValueError(f"surplus module {module!r}: no {root} has it")


def _to_torch(array: np.ndarray, squeeze_excite: bool) -> Tensor:
    tensor = torch.tensor(array)  # a copy: the file's array is read-only
    if tensor.dim() == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()  # HWIO -> OIHW
    if tensor.dim() == 2:
        tensor = tensor.t().contiguous()  # IO -> OI
        return tensor[:, :, None, None] if squeeze_excite else tensor  # ours is a 1 x 1 convolution
    return tensor


def _to_numpy(tensor: Tensor, param: str, linear: bool) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if param == "gain":
        tensor = tensor.flatten()  # timm's is (O, 1, 1, 1)
    elif param == "w":
        tensor = tensor.flatten(1).t() if linear else tensor.permute(2, 3, 1, 0)
    return np.ascontiguousarray(tensor.numpy()) if tensor.dim() else tensor.numpy().copy()

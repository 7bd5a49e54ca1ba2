"""Converts the authors' parameter trees to our state dicts and back, exact to the bit.

Source of the names and layouts: deepmind-research/nfnets/nfnet.py, nf_resnet.py and nf_regnet.py under Haiku.
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from nfnet_timm.formats.haiku_reader import Tree, forget
from nfnet_timm.formats.progress import bytes_bar

__all__ = ["from_haiku", "to_haiku"]

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
_LINEAR = ("fc", "fc1", "fc2")  # our modules whose weight is a matrix in Haiku; the weights of all others are kernels
_DIMS = {"w": 4, "b": 1, "gain": 1, "bias": 1, "skip_gain": 0}


def from_haiku(tree: Tree) -> dict[str, Tensor]:
    """Return the state dict of ``tree``: our names, OIHW and OI layouts, new float32 tensors.

    Raises:
        ValueError: If an array has a name or a number of dimensions that no network of the authors has, if two arrays
            would get the same name, or if an array has NaN or infinite values.
    """
    roots = {module.split("/")[0] for module in tree}
    if len(roots) != 1 or not roots <= set(_ROOTS):
        raise ValueError(f"root modules {sorted(roots)[:5]}: expected exactly one of {', '.join(_ROOTS)}")
    (root,) = roots
    names = _names(root, _blocks(tree, root))
    found: dict[str, tuple[str, np.ndarray]] = {}
    for module, params in tree.items():
        if module not in names:
            raise ValueError(f"surplus module {module!r}: no {root} has it")
        ours = names[module]
        for param, array in params.items():
            if param == "skip_gain" and re.fullmatch(r"stages\.\d\.\d+", ours):
                name = f"{ours}.skipinit_gain"
            elif param in _PARAMS:
                name = f"{ours}.{_PARAMS[param]}"
            else:
                raise ValueError(f"surplus array {module}/{param}: expected the parameters {', '.join(_PARAMS)}")
            dims = 2 if param == "w" and ours.endswith(_LINEAR) else _DIMS[param]
            if array.ndim != dims:
                raise ValueError(f"{module}/{param} has shape {array.shape}: expected {dims} dimensions")
            if name in found:
                raise ValueError(f"two arrays for {name}, the second is {module}/{param}")
            found[name] = f"{module}/{param}", array
    for name in ("head.fc.weight", "head.fc.bias"):
        if name not in found:
            raise ValueError(f"{root}/~/linear/{'w' if name.endswith('weight') else 'b'} is missing")
    bar = bytes_bar(sum(array.nbytes for _, array in found.values()), "reading arrays")

    def convert(name: str) -> Tensor:
        haiku_name, array = found[name]
        tensor = _to_torch(array, squeeze_excite=".attn" in name)
        if not tensor.sum().isfinite():  # a value is not finite, or the sum overflows
            bad = int((~tensor.isfinite()).sum())
            if bad:
                raise ValueError(
                    f"{haiku_name} has {bad} NaN or infinite values of {array.size}: expected finite weights"
                )
        forget(array)
        bar.update(array.nbytes)
        return tensor

    # Most of this time goes into new memory pages. Two threads take 0.6 of the time of one.
    with bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        try:
            return dict(zip(found, pool.map(convert, found), strict=True))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def to_haiku(state_dict: Mapping[str, Tensor]) -> Tree:
    """Return the authors' tree of our state dict, or of timm's ``dm_nfnet_*``: the inverse of ``from_haiku``.

    Half-precision arrays become float32 with the same values.

    Raises:
        ValueError: If an array has a name or a number of dimensions that no network of the authors has, or a type other
            than float32, bfloat16 and float16.
    """
    root = "NFNet" if "stem.conv1.weight" in state_dict else "NF_ResNet"
    if root == "NF_ResNet" and "final_conv.weight" in state_dict:
        root = "NF_RegNet"
    matches = (re.match(r"stages\.(\d+)\.(\d+)\.", key) for key in state_dict)
    blocks = sorted({(int(match[1]), int(match[2])) for match in matches if match})
    modules = {ours: haiku for haiku, ours in _names(root, [f"stages.{i}.{j}" for i, j in blocks]).items()}
    tree: Tree = {}
    for key, tensor in state_dict.items():
        ours, _, param = key.rpartition(".")
        linear = ours.endswith(_LINEAR)
        params = {"weight": "w", "bias": "b" if linear else "bias", "gain": "gain", "skipinit_gain": "skip_gain"}
        if ours not in modules or param not in params:
            raise ValueError(f"surplus array {key}: no network of the authors has it")
        param = params[param]
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{key} is {kind}: expected float32, bfloat16 or float16")
        # Our squeeze-excite has 1 x 1 kernels, and timm's gains have shape (O, 1, 1, 1).
        dims = {_DIMS[param], *((2,) if linear and param == "w" else (4,) if param == "gain" else ())}
        if tensor.dim() not in dims:
            expected = " or ".join(map(str, sorted(dims)))
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}: expected {expected} dimensions")
        tree.setdefault(modules[ours], {})[param] = _to_numpy(tensor.float(), param, linear)
    return tree


def _blocks(tree: Tree, root: str) -> list[str]:
    """Return our names of the blocks in ``tree``. A stage begins where the shortcut has a convolution."""
    pattern = re.compile(rf"{root}/~/{_ROOTS[root]}(?:_([1-9]\d*))?")
    numbers = sorted(int(match[1] or 0) for match in map(pattern.fullmatch, tree) if match)
    names: list[str] = []
    stage, block = -1, 0
    for expected, i in enumerate(numbers):
        module = _block_module(root, i)
        if i != expected:
            raise ValueError(f"block {expected} is missing: {module} follows block {expected - 1}")
        if f"{module}/~/conv_shortcut" in tree:
            stage, block = stage + 1, 0
        names.append(f"stages.{max(stage, 0)}.{block}")
        block += 1
    return names


def _block_module(root: str, i: int) -> str:
    return f"{root}/~/{_ROOTS[root]}" + (f"_{i}" if i else "")


def _names(root: str, blocks: list[str]) -> dict[str, str]:
    """Return our name of each module of a network with these blocks, by Haiku's name."""
    names = {f"{root}/~/{haiku}": ours for haiku, ours in _OUTER.items()}
    for i, block in enumerate(blocks):
        module = _block_module(root, i)
        names[module] = block
        for haiku, ours in _BLOCK.items():
            inner = ours.replace("attn_last", "attn") if root == "NF_RegNet" else ours
            names[f"{module}/~/{haiku}"] = f"{block}.{inner}"
    return names


def _to_torch(array: np.ndarray, squeeze_excite: bool) -> Tensor:
    tensor = torch.from_numpy(np.require(array, requirements="W"))  # torch warns about read-only arrays
    is_pixel_conv = tensor.dim() == 4 and tensor.shape[:2] == (1, 1)
    if is_pixel_conv:
        tensor = tensor[0, 0]  # torch transposes matrices faster than kernels
    if tensor.dim() == 4:
        tensor = tensor.permute(3, 2, 0, 1)  # HWIO -> OIHW
    elif tensor.dim() == 2:
        tensor = tensor.t()  # IO -> OI
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor[:, :, None, None] if is_pixel_conv or (tensor.dim() == 2 and squeeze_excite) else tensor


def _to_numpy(tensor: Tensor, param: str, linear: bool) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if param == "gain":
        tensor = tensor.flatten()  # timm's gain is (O, 1, 1, 1)
    elif param == "w":
        tensor = tensor.flatten(1).t() if linear else tensor.permute(2, 3, 1, 0)
    return np.ascontiguousarray(tensor.numpy()) if tensor.dim() else tensor.numpy().copy()

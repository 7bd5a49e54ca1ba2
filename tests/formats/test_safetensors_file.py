"""The safetensors library reads the written files, and their headers have the hash of the arrays."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from nfnet_timm.formats.safetensors_file import checked_header, read_arrays, read_layout, write_weights

TENSORS = {
    "b.weight": torch.arange(24.0).reshape(2, 3, 4),
    "a.scalar": torch.tensor(2.5),
    "a.empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "half": torch.ones(3, dtype=torch.float16),
    "brain": torch.full((5,), 0.3, dtype=torch.bfloat16),
    "double": torch.ones(2, dtype=torch.float64),
    "ünïcode": torch.ones(1),
}


def test_safetensors_and_our_functions_read_the_written_file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(TENSORS, path, {"origin": 'here " \\ ü'})
    for loaded in (load_file(path), read_arrays(path)):
        assert set(loaded) == set(TENSORS)
        assert all(
            loaded[name].equal(tensor) and loaded[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
        )
    layout = {name: (tensor.shape, tensor.dtype) for name, tensor in read_layout(path).items()}
    assert layout == {name: (tensor.shape, tensor.dtype) for name, tensor in TENSORS.items()}
    content = path.read_bytes()
    sha256 = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert checked_header(path) == {"format": "pt", "origin": 'here " \\ ü', "arrays_sha256": sha256}


def test_other_types_and_other_files_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"a is torch\.complex64: expected one of float64, float32, bfloat16, float16"):
        write_weights({"a": torch.ones(1, dtype=torch.complex64)}, path, {})
    save_file({"a": torch.ones(1, dtype=torch.int64)}, path)
    with pytest.raises(ValueError, match="a is I64, expected one of F64, F32, BF16, F16"):
        read_layout(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="model.safetensors is damaged, or is not a safetensors file"):
        read_arrays(path)

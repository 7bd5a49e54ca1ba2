"""The safetensors library reads the written files, and their headers have the hash of the arrays."""

import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nfnet_timm.formats.safetensors_file import arrays_hash, write_weights

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


def test_safetensors_reads_the_written_file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(TENSORS, path, {"origin": 'here " \\ ü'})
    loaded = load_file(path)
    assert set(loaded) == set(TENSORS)
    assert all(loaded[name].equal(tensor) and loaded[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "origin": 'here " \\ ü', "arrays_sha256": arrays_hash(path)}


def test_arrays_have_the_same_bytes_as_those_of_safetensors(tmp_path):
    tensors = {name: torch.randn(3, 4) for name in "abc"}
    write_weights(tensors, tmp_path / "ours", {})
    save_file(tensors, tmp_path / "theirs")
    assert arrays_hash(tmp_path / "ours") == arrays_hash(tmp_path / "theirs")


def test_hash_does_not_depend_on_the_header(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights({"a": torch.ones(3)}, path, {"x": "y"})
    assert arrays_hash(path) == hashlib.sha256(torch.ones(3).numpy().tobytes()).hexdigest()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with safe_open(path, "pt") as file:
        assert file.metadata()["arrays_sha256"] != arrays_hash(path)


def test_array_of_unsupported_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a is torch\.complex64: expected one of float64, float32, bfloat16, float16"):
        write_weights({"a": torch.ones(1, dtype=torch.complex64)}, tmp_path / "model.safetensors", {})

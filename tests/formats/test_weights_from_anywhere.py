"""The authors' weights from an open file, from bytes and from URLs, as from a path, and refused as from a path."""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import fsspec
import golden
import pytest
import timm
import torch

from nfnet_timm.cli import main
from nfnet_timm.formats.authors import fetched, load_state_dict

SOURCE = golden.DATA / "nfnet_tiny_haiku_2021.npz"
MEMORY = fsspec.filesystem("memory")
FORMS = {
    "an open file": lambda path: path.open("rb"),
    "bytes": Path.read_bytes,
    "a URL": lambda path: "memory://bucket/F0_haiku.npz",
    "a URL of the disk": Path.as_uri,
    "a path": lambda path: path,
}


@pytest.fixture(params=FORMS)
def given(request, tmp_path):
    """Return a function that gives a content in one of the forms."""
    with ExitStack() as opened:

        def give(content):
            path = tmp_path / "F0_haiku.npz"
            path.write_bytes(content)
            MEMORY.pipe("/bucket/F0_haiku.npz", content)
            source = FORMS[request.param](path)
            return opened.enter_context(source) if hasattr(source, "close") else source

        yield give


def build(file, **kwargs):
    return timm.create_model(
        "nfnet_f0", pretrained=True, pretrained_cfg_overlay={"file": file}, **golden.TINY, **kwargs
    )


def test_a_network_has_the_weights_of_the_file_wherever_it_is(given):
    source = given(SOURCE.read_bytes())
    model = build(source, dtype=torch.float64)
    expected = load_state_dict(SOURCE)
    assert all(tensor.equal(expected[name].double()) for name, tensor in model.state_dict().items())
    assert model.pretrained_cfg.get("file") in (None, source)  # not the temporary copy


def test_hostile_content_is_refused_as_from_a_path(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = b'cbuiltins\nexec\n(S\'open("PWNED", "w")\'\ntR.'
    for content in (b"\x80\x03" + hostile, SOURCE.read_bytes()[:-100]):
        with pytest.raises(ValueError, match="expected|not loaded") as error:
            build(given(content))
        assert "F_haiku.npz" not in str(error.value)  # of the temporary copy
    assert not (tmp_path / "PWNED").exists()


def test_a_file_whose_name_is_not_utf8_converts_to_a_folder_that_loads(tmp_path):
    path = tmp_path / "F0\udcff.npz"
    try:
        path.write_bytes(SOURCE.read_bytes())
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    assert main(["convert", str(path), "--out", str(tmp_path / "folder")]) == 0
    assert timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).num_classes == 10


def test_convert_takes_a_url_of_a_file_and_of_a_folder(tmp_path):
    MEMORY.pipe("/tiny.npz", SOURCE.read_bytes())
    assert main(["convert", "memory://tiny.npz", "--out", str(tmp_path / "folder")]) == 0
    MEMORY.put(str(tmp_path / "folder"), "/tiny", recursive=True)
    assert main(["convert", "memory://tiny", "--out", str(tmp_path / "back.npz")]) == 0
    ours, expected = load_state_dict(tmp_path / "back.npz"), load_state_dict(SOURCE)
    assert all(tensor.equal(expected[name]) for name, tensor in ours.items())


def test_a_url_that_ends_in_two_dots_writes_only_to_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with fetched(f"{(tmp_path / 'data' / 'a').as_uri()}/.."):
        assert len(list((tmp_path / "temporary").iterdir())) == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://bucket/missing.npz", "does not exist"),
        ("file:///no/such/file.npz", "does not exist"),
        ("nonsense://a/F0_haiku.npz", "cannot be read: Protocol not known: nonsense"),
        ("zip://a::text.npz", "cannot be read: File is not a zip file"),
        ("reference://x", "cannot be read: "),
    ],
)
def test_a_url_that_cannot_be_read_is_one_line(url, reason, tmp_path, refused):
    (tmp_path / "text.npz").write_text("hello")
    error = refused(url)
    assert error.startswith(f"nfnet-timm: error: {url} {reason}")
    assert error.endswith("expected the URL of one of the authors' files, such as s3://bucket/F0_haiku.npz\n")
    assert error.count("\n") == 1


def test_a_missing_package_for_http_is_one_line_with_the_command_that_installs_it(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    error = refused("http://localhost:9/F0_haiku.npz")
    assert error.startswith("nfnet-timm: error: http://localhost:9/F0_haiku.npz: HTTPFileSystem requires")
    assert error.endswith(": `pip install 'fsspec[http]'`\n")

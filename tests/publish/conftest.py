"""Runs `nfnet-timm publish`."""

import functools
import re
import shutil
from pathlib import Path

import golden
import jinja2
import pytest

from nfnet_timm.cli import main
from nfnet_timm.publish.folder import build_repo
from nfnet_timm.publish.sources import open_model


@pytest.fixture(autouse=True, scope="package")
def card_template_is_compiled_once():
    """Save time; nothing that is published changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Template", functools.cache(jinja2.Template))
        yield


@pytest.fixture
def publish(tmp_path, monkeypatch, capsys):
    """Return a function that publishes a source to org/tiny, and returns the exit status, the output and the errors."""
    monkeypatch.chdir(tmp_path)

    def run(source, *options, repo="org/tiny", license="mit"):
        capsys.readouterr()
        status = main(["publish", str(source), repo, *(["--license", license] if license else []), *options])
        out, error = capsys.readouterr()
        assert "hf_writer" not in out + error
        assert bool(status) == bool(error)
        return status, out, error

    return run


@pytest.fixture
def refused(publish):
    """Return a function that publishes a source without sending anything, and returns the line that refuses it."""

    def run(source, *options):
        status, _, error = publish(source, "--dry-run", *options)
        assert status == 1
        assert re.fullmatch("nfnet-timm: error: .*\n", error)
        assert "\x1b" not in error
        assert "weights_only" not in error  # torch's advice to load the file in spite of its content
        assert ".nfnet-timm-" not in error  # the error must not name a temporary folder
        assert not Path("hub-repos/tiny").exists()
        return error

    return run


@pytest.fixture(scope="package")
def built_once(tmp_path_factory):
    """Build the repo of a file of the authors. Do not change it."""
    folder = tmp_path_factory.mktemp("built") / "tiny"
    build_repo(open_model(golden.DATA / "nfnet_tiny_haiku_2021.npz"), "org/tiny", folder, "mit")
    return folder


@pytest.fixture
def built(built_once, tmp_path):
    """Return that folder where `nfnet-timm publish` builds it."""
    return Path(shutil.copytree(built_once, tmp_path / "hub-repos" / "tiny"))

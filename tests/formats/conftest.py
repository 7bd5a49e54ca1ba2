import pytest

from nfnet_timm.cli import main


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Return a function that converts a source and returns the errors; nothing may be converted or written."""
    monkeypatch.chdir(tmp_path)

    def run(source, out="out"):
        before = sorted(tmp_path.rglob("*"))
        assert main(["convert", source, "--out", out]) == 1
        assert sorted(tmp_path.rglob("*")) == before
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    return run

import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_script(monkeypatch):
    """Run a program in this process, which has imported torch already; return exit status, stdout and stderr."""

    def run(path, *arguments):
        path = ROOT / path
        out, err, before = io.StringIO(), io.StringIO(), set(sys.modules)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
        status = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                status = end.code or 0
        for name in set(sys.modules) - before:  # the next script has modules of its own
            if str(ROOT / "scripts") in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
        if isinstance(status, str):  # what Python prints and returns
            return 1, out.getvalue(), f"{err.getvalue()}{status}\n"
        return status, out.getvalue(), err.getvalue()

    return run

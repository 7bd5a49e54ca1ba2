"""Every script and example: help does nothing, a mistake is one line and writes nothing."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "examples").glob("*.py")])
SHELL = sorted((ROOT / "scripts").glob("*.sh"))
# What a program needs beside the demo's extra, which the tests have.
NEEDS = {"benchmark_privacy.py": "opacus", "private.py": "opacus", "fine_tune.py": "accelerate"}


def name_of(path):
    return path.name


def tracked():
    """When each file that a script may write was written."""
    pages = [*ROOT.glob("*.md"), *(p for d in ("benchmarks", "docs", "hub") for p in (ROOT / d).rglob("*.*"))]
    return {page: page.stat().st_mtime_ns for page in pages}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a program in an empty folder; return its exit status, or the line it ends with, and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    before = tracked()

    def run(path, *arguments):
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        assert list(tmp_path.iterdir()) == []
        assert tracked() == before
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_help_is_printed_and_nothing_else_is_done(run, path):
    pytest.importorskip(NEEDS.get(path.name, "sys"))
    status, out, _ = run(path, "--help")
    assert not status
    assert f"usage: {path.name}" in out


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_a_misspelt_option_is_an_error(run, path):
    pytest.importorskip(NEEDS.get(path.name, "sys"))
    status, _, error = run(path, "--no-such-option")
    assert status == 2
    assert error.splitlines()[-1].startswith(f"{path.name}: error: ")


@pytest.mark.parametrize(
    "name", ["benchmark_launches", "benchmark_networks", "common", "digits_training", "figures", "timm_suite_plugin"]
)
def test_a_module_says_what_to_run_instead(run, name):
    status, _, error = run(ROOT / "scripts" / f"{name}.py")
    assert status == 2
    assert "scripts/" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("path", "module", "extra"),
    [
        ("examples/features.py", "matplotlib", "demo"),
        ("examples/fine_tune.py", "accelerate", "examples"),
        ("examples/private.py", "opacus", "privacy,demo"),
        ("examples/private.py", "sklearn", "privacy,demo"),
        ("examples/sam.py", "tqdm", "demo"),
        ("scripts/agc_stability.py", "sklearn", "demo"),
        ("scripts/batch_size.py", "matplotlib", "demo"),
        ("scripts/benchmark_privacy.py", "opacus", "privacy"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(run, monkeypatch, path, module, extra):
    for name in (module, *(name for name in sys.modules if name.startswith(f"{module}."))):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "figures", raising=False)
    if module != "opacus" and "private" in path:
        monkeypatch.setitem(sys.modules, "opacus", type(sys)("opacus"))
        sys.modules["opacus"].PrivacyEngine = None
    line, _, _ = run(ROOT / path)
    assert module in line
    assert f"pip install '.[{extra}]'" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sam.py", ["--epochs", "0"]),
        ("sam.py", ["--rho", "nan"]),
        ("features.py", ["--out", "."]),
        ("features.py", ["--out", "x.doc"]),
        ("private.py", ["--epochs", "0"]),
        ("private.py", ["--epsilon", "nan"]),
        ("private.py", ["--batch-size", "0"]),
        ("fine_tune.py", [".", "--epochs", "0"]),
        ("fine_tune.py", [".", "--batch-size", "0"]),
        ("fine_tune.py", [".", "--lr", "inf"]),
        ("fine_tune.py", [".", "--seed", "-1"]),
    ],
)
def test_an_impossible_value_is_an_error_that_names_the_option(run, name, arguments):
    pytest.importorskip(NEEDS.get(name, "sys"))
    status, _, error = run(ROOT / "examples" / name, *arguments)
    assert status == 2
    assert arguments[-2] in error.splitlines()[-1]


@pytest.mark.parametrize("content", ["not json", '{"a": 1}'])
def test_figures_are_not_measured_for_a_file_that_cannot_take_them(run, tmp_path_factory, content):
    file = tmp_path_factory.mktemp("elsewhere") / "figures.json"
    file.write_text(content)
    status, _, error = run(ROOT / "scripts" / "benchmark.py", "agc", "--json", str(file))
    assert status == 2
    assert str(file) in error.splitlines()[-1]
    assert file.read_text() == content


@pytest.mark.parametrize("path", [*SHELL, ROOT / ".ci" / "run"], ids=name_of)
def test_help_of_a_shell_script_is_its_first_comment(path):
    result = subprocess.run(["bash", path, "--help"], capture_output=True, text=True, timeout=10)
    first = next(line for line in path.read_text().splitlines() if not line.startswith("#!"))
    assert (result.returncode, result.stdout.splitlines()[0], result.stderr) == (0, first.removeprefix("# "), "")


@pytest.mark.parametrize("name", ["benchmark_all.sh", "benchmark_gpu.sh", "check.sh", "sdist.sh", "../.ci/run"])
def test_a_shell_script_without_options_refuses_them(name):
    command = ["bash", ROOT / "scripts" / name, "--no-such-option"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert result.returncode == 2
    assert "--no-such-option" in result.stderr


@pytest.mark.parametrize("arguments", ["", "on", "on 0", "on 2 true", "kill", "kill x", "up now", "nonsense"])
def test_two_hosts_explains_itself_after_a_mistake(arguments):
    command = ["bash", ROOT / "scripts" / "two_hosts.sh", *arguments.split()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert result.returncode == 2
    assert "two_hosts.sh on 0 COMMAND" in result.stderr
    assert "unbound" not in result.stderr

"""Every script and example: --help does nothing else, a mistake is one line and writes nothing."""

import os
import subprocess
import sys

import pytest
from golden import ROOT

PYTHON = sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "examples").glob("*.py")])
PROGRAMS = [path for path in PYTHON if "__main__" in path.read_text()]
SHELL = [path for path in (ROOT / "scripts").rglob("*.sh") if path.name != "setup_env.sh"] + [ROOT / ".ci" / "run"]

# What a program needs beside the demo's extra, which the tests have.
NEEDS = {"privacy.py": "opacus", "private.py": "opacus", "fine_tune.py": "accelerate"}


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.fixture
def run(run_script, tmp_path, monkeypatch):
    """Run a program in an empty folder, which stays empty; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(path, *arguments):
        result = run_script(path, *arguments)
        assert list(tmp_path.iterdir()) == []
        return result

    return run


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_help_is_printed_and_a_misspelt_option_is_an_error(run, path):
    pytest.importorskip(NEEDS.get(path.name, "sys"))
    status, out, _ = run(path, "--help")
    assert status == 0
    assert f"usage: {path.name}" in out
    status, _, error = run(path, "--no-such-option")
    assert status == 2
    assert error.splitlines()[-1].startswith(f"{path.name}: error: ")


@pytest.mark.parametrize(
    ("path", "module", "extra"),
    [
        ("examples/features.py", "sklearn", "demo"),
        ("examples/fine_tune.py", "accelerate", "examples"),
        ("examples/private.py", "opacus", "privacy,demo"),
        ("examples/sam.py", "tqdm", "demo"),
        ("scripts/figures/batch_size.py", "matplotlib", "demo"),
        ("scripts/benchmarks/privacy.py", "opacus", "privacy"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(run, monkeypatch, path, module, extra):
    for name in (module, *(name for name in sys.modules if name.startswith(f"{module}."))):
        monkeypatch.setitem(sys.modules, name, None)
    _, _, error = run(path)
    (line,) = error.splitlines()
    assert module in line
    assert f"pip install '.[{extra}]'" in line


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("examples/sam.py", ["--rho", "nan"], "--rho nan"),
        ("examples/sam.py", ["--epochs", "0"], "--epochs 0"),
        ("examples/features.py", ["--model", "nfnet_f7"], "--model nfnet_f7"),
        ("examples/private.py", ["--epsilon", "nan"], "--epsilon nan"),
        ("examples/fine_tune.py", ["nowhere"], "there is no folder nowhere/train"),
        ("examples/fine_tune.py", [".", "--seed", "-1"], "--seed -1"),
        ("examples/fine_tune.py", [".", "--lr", "inf"], "--lr inf"),
        ("examples/fine_tune.py", [".", "--val-split", "train"], "both train"),
        ("examples/fine_tune.py", [".", "--push-to-hub", "org/name"], "licence"),
        ("examples/fine_tune.py", [".", "--push-to-hub", "org/name", "--license", "mit"], "needs an access token"),
        ("examples/fine_tune.py", [".", "--dataset", "hfds/a/b", "--model", "nfnet_f00"], "--model nfnet_f00"),
        ("scripts/benchmarks/speed.py", ["train", "--batch", "0"], "--batch: '0'"),
        ("scripts/benchmarks/speed.py", ["agc", "--json", "nowhere/out.json"], "nowhere"),
        ("scripts/benchmarks/speed.py", ["agc", "--device", "cuda"], "--device cuda"),
        ("scripts/benchmarks/speed.py", ["agc", "--json", __file__], __file__),
        (
            "scripts/benchmarks/speed.py",
            ["agc", "--json", f"{ROOT}/benchmarks/results/deployment.json"],
            "no list of results",
        ),
        ("scripts/benchmarks/memory.py", ["--name", "resnet50"], "--name resnet50"),
        ("scripts/figures/signal_controls.py", ["--from-json", "--out", "nowhere"], "nowhere/signal_controls.json"),
        ("scripts/figures/signal_controls.py", ["--batch", "0"], "--batch 0"),
        ("scripts/figures/clipped_layers.py", ["--out", __file__], __file__),
    ],
)
def test_an_impossible_value_is_an_error_that_names_the_option(run, monkeypatch, path, arguments, message):
    pytest.importorskip(NEEDS.get(path.rpartition("/")[2], "sys"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)  # a developer may have logged in
    status, out, error = run(path, *arguments)
    assert (status, out) == (2, "")
    assert message in error.splitlines()[-1]


@pytest.mark.parametrize("path", SHELL, ids=name_of)
def test_help_of_a_shell_script_is_its_first_comment(path):
    result = subprocess.run(["bash", path, "--help"], capture_output=True, text=True, timeout=10)
    first = next(line for line in path.read_text().splitlines() if not line.startswith("#!"))
    assert (result.returncode, result.stdout.splitlines()[0], result.stderr) == (0, first.removeprefix("# "), "")


def test_an_environment_whose_creation_was_interrupted_is_created_again(tmp_path):
    """venv makes bin/python first and installs pip last."""
    stub, venv = tmp_path / "python", tmp_path / "venv"
    stub.write_text(f'#!/bin/sh\nif [ "$2" = venv ]; then cp {stub} {venv}/bin/python; cp {stub} {venv}/bin/pip; fi\n')
    stub.chmod(0o755)
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (venv / "bin" / "python").chmod(0o755)
    env = {"PATH": os.environ["PATH"], "EXTRAS": "demo", "PYTHON": str(stub), "NFNET_TIMM_VENV": str(venv)}
    result = subprocess.run(["bash", "-e", ROOT / "scripts" / "setup_env.sh"], env=env, timeout=10)
    assert result.returncode == 0

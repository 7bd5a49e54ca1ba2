"""Every code block of README and docs runs as written, in order, in a folder with the files that it mentions."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import authors_file
import golden
import pytest
from fresh_process import run_fresh
from hub_cache import fill_hub_cache

from nfnet_timm.cli import _parser
from nfnet_timm.publish.convert import convert_to_folder
from nfnet_timm.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {page.name: re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in PAGES}


def blocks(wanted):
    return [block for page in BLOCKS.values() for kind, block in page if kind == wanted]


def test_every_block_is_of_a_type_that_is_tested():
    assert {kind for page in BLOCKS.values() for kind, _ in page} == {"bash", "python", "console", "bibtex"}


@pytest.mark.parametrize("line", [line for block in blocks("console") for line in block.splitlines()])
def test_train_script_commands_use_existing_options(line):
    """The commands need a dataset to run. Without one, this checks that every option exists."""
    from torch.distributed.run import get_args_parser

    words = shlex.split(line)
    if words[0] == "nfnet-timm":
        arguments = words[1 : words.index(">")] if ">" in words else words[1:]
        parsed = _parser().parse_args(arguments)
        assert words[1] != "recipe" or parsed.name in RECIPES
        return
    if words[:2] == ["hf", "auth"]:
        return
    if words[0] == "bash":
        assert (ROOT / words[1]).exists()
        return
    launcher, options = words[1 : words.index("train.py")], words[words.index("train.py") + 1 :]
    if words[0] == "torchrun":
        get_args_parser().parse_args([*launcher, "train.py"])
    known = set(json.loads((golden.DATA / "train_script_options.json").read_text())) | {"config"}
    assert {word[2:].replace("-", "_") for word in options if word.startswith("--")} <= known


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Create a folder with a photograph and the authors' file, and a Hub cache with the pretrained networks."""
    import timm
    from PIL import Image
    from sklearn.datasets import load_sample_image

    folder = tmp_path_factory.mktemp("readme")
    Image.fromarray(load_sample_image("china.jpg")).save(folder / "photo.jpg")
    authors_file.write(golden.tree("nfnet_f0"), folder / "F0_haiku.npz")
    convert_to_folder(folder / "F0_haiku.npz", folder / "nfnet_f0")
    fill_hub_cache(folder / "hf", "dm_nfnet_f0.dm_in1k", timm.create_model("dm_nfnet_f0"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, found in BLOCKS.items() if any(kind == "python" for kind, _ in found)])
def test_the_python_blocks_of_a_page_run_in_order(folder, page):
    """A block that names a library is left out if the library is not installed."""
    text = next(path for path in PAGES if path.name == page).read_text()
    found = re.findall(r"```python *(\w*)\n(.*?)```", text, flags=re.DOTALL)
    needed = {library for library, _ in found} - {"", "aotinductor"}  # which is a part of torch
    missing = {library for library in needed if not importlib.util.find_spec(library)}
    code = "\n".join(block for library, block in found if library not in missing)
    code = f"import os; os.chdir({str(folder)!r})\n{code}"
    warnings = None if needed else "error"  # the libraries warn
    out = run_fresh(code, warnings=warnings, HF_HOME=str(folder / "hf"), HF_HUB_OFFLINE="1")
    if page == "networks.md":
        assert "torch.Size([1, 512, 24, 24])" in out
    if page == "inside.md":
        assert (folder / "signal_propagation.png").exists()


@pytest.mark.slow
def test_the_shell_blocks_run(folder, tmp_path):
    """Run them in a copy of the project, with the installed torch, because a new installation would download torch."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".git", ".venv", ".*cache*", "__pycache__", "hub-repos"))
    (clone / "F0_haiku.npz").symlink_to(folder / "F0_haiku.npz")
    (clone / ".venv").symlink_to(sys.prefix)
    stamp = Path(sys.prefix) / "installed-demo"
    stamp.touch()
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    pip = bin_dir / "pip"
    target = "--no-deps --no-build-isolation --disable-pip-version-check --root-user-action=ignore --target"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@" {target} {tmp_path / "site"}\n')
    pip.chmod(0o755)
    path = f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    for line in "\n".join(blocks("bash")).splitlines():
        line += " --epochs 4" if "quickstart" in line else ""
        result = subprocess.run(line, shell=True, cwd=clone, env=env, capture_output=True, text=True, timeout=400)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        if "quickstart" in line:
            check_demo(result.stdout, clone / "nfnet-demo")
    for file in ("py.typed", "recipes/nfnet.yaml", "publish/checkpoints.toml", "publish/card.md"):
        assert (tmp_path / "site" / "nfnet_timm" / file).exists(), file


def check_demo(out, folder):
    """The demo trains with clipping only, saves the network and loads it."""
    assert "logits identical" in out
    assert "The Hub cannot be reached" in out
    accuracy = {words: float(number) for words, number in re.findall(r"  (\w+) AGC +test accuracy +([\d.]+)%", out)}
    assert accuracy["with"] > 80 > 30 > accuracy["without"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (folder / "model").iterdir()) == ["config.json", "model.safetensors"]

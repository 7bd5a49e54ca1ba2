"""README and docs: code blocks run as written, and links, lines and messages exist."""

import ast
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_link_targets_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and not re.fullmatch(r"L\d+", anchor):
            titles = re.findall(r"^#+ (.+)$", there.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_lines_in_inside_md_are_in_the_linked_files():
    text = (ROOT / "docs" / "inside.md").read_text()
    links = re.findall(r"\[`([^`]+)`\]\(\.\./([^)]+)\)", text)
    assert links
    assert [line for line, path in links if line != path and line not in (ROOT / path).read_text()] == []


def test_messages_in_troubleshooting_are_those_of_the_package():
    def text_of(node):
        return "".join(v.value if isinstance(v, ast.Constant) else "..." for v in node.values)

    nodes = [node for path in (ROOT / "nfnet_timm").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    ours = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    ours |= {text_of(node) for node in nodes if isinstance(node, ast.JoinedStr)}
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (`[^|]+`) \|", page, flags=re.MULTILINE)  # without timm's message, which has "(timm)"
    messages = [message.split("...") for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert messages
    assert [parts for parts in messages if not any(all(p.strip() in text for p in parts) for text in ours)] == []


def test_no_command_installs_from_a_package_index():
    """The package is not on an index yet. Such a command would find nothing, or another package."""
    folders = ("docs", "examples", "hub", "nfnet_timm", "scripts")
    pages = [*PAGES, *(page for folder in folders for page in (ROOT / folder).rglob("*.*"))]
    texts = {page: page.read_text() for page in pages if page.suffix in (".md", ".py", ".sh", ".toml", ".yaml")}
    found = [page for page, text in texts.items() if re.search(r"pip install (?:-\S+ )*'?nfnet[-_]timm", text)]
    assert found == []


def blocks(wanted):
    return [block for page in BLOCKS.values() for kind, block in page if kind == wanted]


def test_every_block_is_of_a_type_that_is_tested():
    assert {kind for page in BLOCKS.values() for kind, _ in page} == {"bash", "python", "console", "bibtex"}


@pytest.mark.parametrize("line", [line for block in blocks("console") for line in block.splitlines()])
def test_commands_use_existing_options(line):
    """The commands need a data set or a network to run. Without them, this checks that every option exists."""
    words = shlex.split(line.split(">")[0])
    if words[0] == "nfnet-timm":
        parsed = _parser().parse_args(words[1:])
        assert words[1] != "recipe" or parsed.name in RECIPES
    elif words[0] == "bash":
        assert (ROOT / words[1]).exists()
    elif "train.py" in words:
        known = set(json.loads((golden.DATA / "train_script_options.json").read_text())) | {"config"}
        options = words[words.index("train.py") :]
        assert {word[2:].replace("-", "_") for word in options if word.startswith("--")} <= known
    else:
        assert words[:2] == ["hf", "auth"]


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
    (clone / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith("installed-"):  # a stamp of setup_env.sh
            (clone / ".venv" / part.name).symlink_to(part)
    (clone / ".venv" / "installed-demo").touch()
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    pip = bin_dir / "pip"
    target = "--no-deps --no-build-isolation --disable-pip-version-check --root-user-action=ignore --target"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@" {target} {tmp_path / "site"}\n')
    pip.chmod(0o755)
    path = f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    lines = "\n".join(blocks("bash")).replace("quickstart.sh", "quickstart.sh --epochs 4")
    result = subprocess.run(["bash", "-exc", lines], cwd=clone, env=env, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "logits identical" in result.stdout
    accuracies = dict(re.findall(r"  (\w+) AGC +test accuracy +([\d.]+)%", result.stdout))
    assert float(accuracies["with"]) > 80 > 30 > float(accuracies["without"])
    assert (clone / "nfnet-demo" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for file in ("py.typed", "recipes/nfnet.yaml", "publish/checkpoints.toml", "publish/card.md"):
        assert (tmp_path / "site" / "nfnet_timm" / file).exists(), file

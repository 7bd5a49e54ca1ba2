"""README and docs have links with existing targets, lines and messages of the code, and no install from an index."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page):
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_link_targets_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and not re.fullmatch(r"L\d+", anchor):
            assert anchor in anchors(there), target


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

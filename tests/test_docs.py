"""The links in README and docs have existing targets, and no page installs from a package index."""

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


def test_no_command_installs_from_a_package_index():
    """The package is not on an index yet. Such a command would find nothing, or another package."""
    folders = ("docs", "examples", "hub", "nfnet_timm", "scripts")
    pages = [*PAGES, *(page for folder in folders for page in (ROOT / folder).rglob("*.*"))]
    texts = {page: page.read_text() for page in pages if page.suffix in (".md", ".py", ".sh", ".toml", ".yaml")}
    found = [page for page, text in texts.items() if re.search(r"pip install (?:-\S+ )*'?nfnet[-_]timm", text)]
    assert found == []

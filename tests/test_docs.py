"""README and docs: short enough, their links lead somewhere, and each error message is explained."""

import ast
import re
from pathlib import Path

import pytest

import nfnet_timm

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_is_a_door():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def anchors(page):
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and not re.fullmatch(r"L\d+", anchor):
            assert anchor in anchors(there), target


def template(node):
    """The text of a string with ``{}`` for what is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return "{}"


def messages():
    for path in Path(nfnet_timm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = ast.unparse(call.func)
            # Refused and Damaged are told by read_tree, as what is not loaded and what is damaged.
            if (isinstance(node, ast.Raise) and name not in ("Refused", "Damaged")) or name in (
                "warnings.warn",
                "_warn",
            ):
                text = template(call.args[0])
                if text.replace("{}", "").strip(" :"):
                    yield text


EXPLAINED = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)


def is_explained(message, by):
    pattern = ".*".join(re.escape(part.strip()) for part in by.split("..."))
    return re.search(pattern, message) is not None


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_each_message_is_explained(message):
    assert any(is_explained(message, by) for by in EXPLAINED)


def test_nothing_is_explained_that_is_not_said():
    said = list(messages())
    timms = "No pretrained weights exist"
    assert [by for by in EXPLAINED if not by.startswith(timms) and not any(is_explained(m, by) for m in said)] == []


def test_nobody_is_told_to_install_from_a_package_index():
    """It is on none yet: a command there would find nothing, or another package."""
    folders = ("docs", "examples", "hub", "nfnet_timm", "scripts")
    pages = [*PAGES, *(page for folder in folders for page in (ROOT / folder).rglob("*.*"))]
    texts = {page: page.read_text() for page in pages if page.suffix in (".md", ".py", ".sh", ".toml", ".yaml")}
    found = [page for page, text in texts.items() if re.search(r"pip install[^\n]* '?nfnet[-_]timm", text)]
    assert found == []

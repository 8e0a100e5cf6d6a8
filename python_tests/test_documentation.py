"""The documentation stays true: its Python runs, its links lead somewhere, and the whole API is in it."""

from __future__ import annotations

import importlib.util
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ahkernels as ah

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
PAGES_THAT_RUN = [ROOT / "README.md", *DOCS]
PAGES_WITH_LINKS = [
    *PAGES_THAT_RUN,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "benchmarks").glob("*.md")),
]

FENCE = re.compile(
    r"^(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)`*[ \t]*$", re.MULTILINE | re.DOTALL
)
INLINE_CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(\s*<?(?P<target>[^()<>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)")  # of links and of images
HEADING = re.compile(r"^#{1,6}\s+(?P<text>.+?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:")  # https:, mailto:


@dataclass(frozen=True)
class Block:
    """A fenced block of Python.

    Attributes:
        text: What stands between the fences.
        line: Line of the page that its first line is.
        needs: Packages that it needs and that the tests may lack, from a fence such as ```python needs=wandb,mlflow.
    """

    text: str
    line: int
    needs: tuple[str, ...] = ()

    @property
    def can_run(self) -> bool:
        return all(importlib.util.find_spec(package) for package in self.needs)


def python_blocks(text: str) -> list[Block]:
    """The blocks of a page that are fenced as ```python, in order."""
    blocks = []
    for found in FENCE.finditer(text):
        language, _, needs = found["language"].strip().partition(" needs=")
        if language == "python":
            line = text.count("\n", 0, found.start("text")) + 1
            blocks.append(Block(found["text"], line, tuple(needs.split(",")) if needs else ()))
    return blocks


def run_page(page: Path) -> dict[str, Any]:
    """Runs the blocks of a page one after the other in one namespace, which it returns.

    A page shows all that its blocks need: nothing is defined beforehand. Blocks for packages that are not installed are
    left out.
    """
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in filter(lambda one: one.can_run, python_blocks(page.read_text(encoding="utf-8"))):
        # Blank lines in front, so that a traceback has the lines of the page.
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
    return namespace


def prose(text: str) -> str:
    """A page without its code, in which a bracket is no link."""
    return INLINE_CODE.sub("", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for heading in HEADING.finditer(FENCE.sub("", text)):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"]).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        repeats = sum(1 for anchor in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", anchor))
        found.add(f"{slug}-{repeats}" if repeats else slug)
    return found


def dead_links(page: Path, root: Path) -> list[str]:
    """The relative links and images of a page that lead to no file, folder or heading inside the repository."""
    text = page.read_text(encoding="utf-8")
    dead = []
    for link in LINK.finditer(prose(text)):
        target = link["target"]
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        exists = file.exists() and file.is_relative_to(root.resolve())
        if exists and anchor:
            exists = file.suffix == ".md" and anchor in anchors(file.read_text(encoding="utf-8"))
        if not exists:
            dead.append(target)
    return dead


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- the pages


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=name_of)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, one_thread):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)  # what a block writes goes there
    try:
        run_page(page)
    finally:
        pyplot.close("all")


@pytest.mark.parametrize("page", PAGES_WITH_LINKS, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    assert dead_links(page, ROOT) == []


def test_the_whole_api_is_in_the_reference():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^\.\. (?:auto\w+|data):: ([\w.]+)", pages, re.MULTILINE)
    assert sorted({name.removeprefix("ahkernels.") for name in listed} & set(ah.__all__)) == sorted(ah.__all__)


def test_all_keywords_and_statistics_are_explained():
    page = (ROOT / "docs" / "keywords.md").read_text(encoding="utf-8")
    keywords = [*inspect.signature(ah.layerwise_alignment).parameters, *ah.CaptureOptions.__dataclass_fields__]
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert sorted({*keywords, *ah.STATISTICS} - rows - {"options"}) == []


# ---- what the tests above would notice


def test_a_block_that_raises_fails_with_its_line_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\na = 1\n```\n\n```python\nassert a == 1\nassert a == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_page(page)
    assert caught.traceback[-1].lineno + 1 == 9
    assert str(caught.traceback[-1].path) == str(page)


def test_only_blocks_of_python_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\nexit 1\n```\n```python\na = 1\n```\n```\nno language\n```\n````python\nb = a + 1\n````\n")
    assert run_page(page)["b"] == 2


def test_blocks_run_where_their_packages_are(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python needs=torch,numpy\na = 1\n```\n```python needs=torch,no_such_package\na = 2\n```\n")
    assert run_page(page)["a"] == 1


@pytest.mark.parametrize(
    ("link", "dead"),
    [
        ("[a file](there.md)", False),
        ("![a picture](there.md)", False),
        ("[a folder](folder)", False),
        ("[a heading](there.md#a-title-of-two-parts)", False),
        ("[the second of that name](there.md#again-1)", False),
        ("[a heading of this page](#here)", False),
        ("[a site](https://example.org/nowhere.md)", False),
        ("`[i](j)` in code", False),
        ("```\n[i](j)\n```", False),
        ("[no file](nowhere.md)", True),
        ("![no picture](nowhere.png)", True),
        ("[no heading](there.md#nowhere)", True),
        ("[no heading of this page](#nowhere)", True),
        ("[outside of the repository](../outside.md)", True),
        ("[![a picture that links](there.md)](nowhere.md)", True),
    ],
)
def test_links_are_told_apart(tmp_path, link, dead):
    root = tmp_path / "repository"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "outside.md").touch()
    (root / "there.md").write_text("# A title, of `two` parts!\n\n## Again\n\n## Again\n")
    page = root / "page.md"
    page.write_text(f"# Here\n\n{link}\n")
    assert bool(dead_links(page, root)) == dead

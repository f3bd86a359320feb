"""What pages and docstrings name of this repository is there."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
TREES = ("ipmasq_agent", "tests", "bench", "deploy", "docs", "scripts")
# A file of Python; what stands before its name is a folder here or in the package.
MODULE = re.compile(r"(?<![\w./-])(?:\w+/)*\w+\.py\b")
DOTTED = re.compile(r"\b(?:ipmasq_agent|tests|bench)(?:\.[a-zA-Z_]\w*)+")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)?(?:#([^)\s]+))?\)")
QUOTED = re.compile(r"`([a-z_]+(?:/[\w.-]*)+)`")


@cache
def files() -> tuple[str, ...]:
    """The files of the repository, each with a slash before its path."""
    return tuple(
        f"/{path.relative_to(ROOT)}" for tree in TREES for path in (ROOT / tree).rglob("*.*")
    )


def there(path: str) -> bool:
    """Whether a file has this path, or the end of its path."""
    return any(file.endswith(f"/{path}") for file in files())


def resolves(name: str) -> bool:
    """Whether a dotted name is a file at the top, a module, or what a module holds."""
    *parts, last = name.split(".")
    path = ROOT.joinpath(*parts, last)
    if (ROOT / name).is_file() or path.is_dir() or path.with_suffix(".py").exists():
        return True
    module = ".".join(parts)
    return len(parts) > 0 and resolves(module) and hasattr(importlib.import_module(module), last)


def missing(text: str) -> list[str]:
    return [
        *(path for path in MODULE.findall(text) if not there(path)),
        *(name for name in DOTTED.findall(text) if not resolves(name)),
    ]


def docstrings() -> Iterator[tuple[Path, str]]:
    for tree in ("ipmasq_agent", "tests", "bench"):
        for path in sorted((ROOT / tree).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(
                    node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                ):
                    yield path, ast.get_docstring(node) or ""


def test_docstrings_name_only_modules_that_are_there() -> None:
    named = ((path.relative_to(ROOT), missing(text)) for path, text in docstrings())
    assert [(str(path), names) for path, names in named if names] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_what_is_there(page: Path) -> None:
    text = page.read_text()
    wrong = missing(text)
    for path in QUOTED.findall(text):
        first = path.partition("/")[0]
        known = {folder.name for folder in (ROOT / "ipmasq_agent").iterdir()} | set(TREES)
        # A table of a room's parts names them by what stands in the room.
        at = (ROOT / path, ROOT / "ipmasq_agent" / path, *ROOT.glob(f"ipmasq_agent/*/{path}"))
        if not any(one.exists() for one in at) and (first in known or path.endswith("/")):
            wrong.append(path)
    for path, anchor in LINK.findall(text):
        to = page.parent / path if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            wrong.append(f"{path}#{anchor}")
    assert wrong == []


@pytest.mark.parametrize("name", ["commands.md", "metrics.md"])
def test_what_the_program_says_itself_is_written_down(name: str) -> None:
    pages = runpy.run_path(str(ROOT / "scripts/reference.py"))["PAGES"]
    assert (ROOT / "docs" / name).read_text() == pages[name](), "run scripts/reference.py"

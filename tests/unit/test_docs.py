"""What docstrings name of this repository is there."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TREES = ("ipmasq_agent", "tests", "bench", "deploy", "docs", "scripts")
# A file of Python; what stands before its name is a folder here or in the package.
MODULE = re.compile(r"(?<![\w./-])(?:\w+/)*\w+\.py\b")
DOTTED = re.compile(r"\b(?:ipmasq_agent|tests|bench)(?:\.[a-zA-Z_]\w*)+")


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

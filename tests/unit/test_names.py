"""A class's name says what it is, wherever in the package it is read: no two share one."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import ipmasq_agent

PACKAGE = Path(ipmasq_agent.__file__).parent


def public_classes() -> Iterator[tuple[str, str]]:
    """Yield the name of each public class at the top of a module, and the module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, str(path.relative_to(PACKAGE))


def test_no_two_classes_of_the_package_have_one_name() -> None:
    places = defaultdict(list)
    for name, place in public_classes():
        places[name].append(place)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}

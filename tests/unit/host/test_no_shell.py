"""What runs on nodes starts programs by their arguments; no line is ever read by a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ipmasq_agent

PACKAGE = Path(ipmasq_agent.__file__).parent
SHELLS = frozenset({"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"})
NAMES = frozenset({"sh", "bash", "dash", "ash", "/bin/sh", "/bin/bash"})


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def by_a_shell(call: ast.Call) -> bool:
    function = call.func
    named = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    words = (each for argument in call.args for each in ast.walk(argument))
    return (
        named in SHELLS
        or any(keyword.arg == "shell" for keyword in call.keywords)
        or any(isinstance(each, ast.Constant) and each.value in NAMES for each in words)
    )


def test_no_module_for_nodes_has_a_shell_read_anything() -> None:
    modules = [
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("lab", "bench")
    ]
    assert len(modules) > 100
    found = [
        f"{path}:{call.lineno}"
        for path in modules
        for call in calls(ast.parse(path.read_bytes()))
        if by_a_shell(call)
    ]
    assert found == []


def test_a_shell_would_be_found() -> None:
    lines = ("run(line, shell=True)", "os.system(line)", "run(['sh', '-c', line])", "popen(line)")
    assert all(by_a_shell(call) for line in lines for call in calls(ast.parse(line)))
    assert not any(map(by_a_shell, calls(ast.parse("run(['ipset', 'save'])"))))

"""How answers are printed: for people, or as JSON or YAML with the keys of the contracts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def output_option_with(default: str) -> Callable[[F], F]:
    """Return the option that says how to print an answer, with another default."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json", "yaml"]),
        default=default,
        show_default=True,
        help="How to print the answer.",
    )


output_option = output_option_with("text")


def emit(answer: Any, output: str, as_text: Callable[[], str]) -> None:
    """Print ``answer``: plain data for json and yaml, ``as_text()`` for people."""
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
    elif output == "yaml":
        import yaml

        plain = json.loads(json.dumps(answer))  # YAML knows no enums, JSON takes them as text
        click.echo(yaml.safe_dump(plain, sort_keys=False), nl=False)
    else:
        # A device's name may be no text at all.
        text = as_text().encode(errors="backslashreplace").decode()
        if text:
            click.echo(text, nl=not text.endswith("\n"))


def remark(kind: str, lines: Iterable[object]) -> None:
    """Print lines of one kind, as ``warning``, on standard error."""
    for line in lines:
        click.echo(f"{kind}: {line}", err=True)


def colour(line: str) -> str:
    """Return a line of a diff in the colours of git; click drops them off a terminal."""
    if "NO_COLOR" in os.environ:
        return line
    if line.startswith(("---", "+++")):
        return click.style(line, bold=True)
    if line.startswith("@@"):
        return click.style(line, fg="cyan")
    if line.startswith("+"):
        return click.style(line, fg="green")
    return click.style(line, fg="red") if line.startswith("-") else line


def styled(text: str, shade: str) -> str:
    """Return a word in a colour; click drops it off a terminal."""
    return text if "NO_COLOR" in os.environ else click.style(text, fg=shade)

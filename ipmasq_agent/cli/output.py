"""How answers are printed: for people, or as JSON or YAML with the keys of the contracts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def output_option_with(default: str, *more: str) -> Callable[[F], F]:
    """Return the option that says how to print an answer, with another default or more ways."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json", "yaml", *more]),
        default=default,
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


def annotation(level: str, line: str) -> str:
    """Return a line about a document as a command to GitHub Actions, which shows it in its place.

    Args:
        level: ``error``, ``warning`` or ``notice``.
        line: as ``FILE:LINE:COLUMN: text``, or any other text.
    """
    place = re.match(r"(.+?):([0-9]+):([0-9]+): ", line)
    fields = ""
    if place is not None:
        # What ends a field has to be written otherwise; in the message only what ends a line.
        file = _escaped(place[1]).replace(":", "%3A").replace(",", "%2C")
        fields = f" file={file},line={place[2]},col={place[3]}"
        line = line[place.end() :]
    return f"::{level}{fields}::{_escaped(line)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


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

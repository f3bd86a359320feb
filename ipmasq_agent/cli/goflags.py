"""Arguments as Go's flag package and klog write them, made into ours.

``-enable-ipv6``, ``--enable-ipv6=true`` and ``--enable-ipv6`` are one flag to Go. A bare
boolean becomes ``--flag=true`` here, so that the parser sees one form; arguments without
a verb become ``run``.
"""

from __future__ import annotations

import re

import click

TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

# Booleans that may stand alone. Only these: a bare `--config` still takes the next word.
BOOLEANS = frozenset(
    {
        "enable-ipv6",
        "nomasq-all-reserved-ranges",
        "random-fully",
        "cleanup-on-exit",
        "logtostderr",
        "alsologtostderr",
    }
)
# Words that are ours and that click must see as they are.
OURS = frozenset({"--help", "-h", "--version"})


class GoBool(click.ParamType):
    """A boolean in the spellings that Go's strconv.ParseBool accepts."""

    name = "bool"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bool:
        """Return the truth of ``value``, or fail naming the spellings."""
        if isinstance(value, bool):
            return value
        if value in TRUE:
            return True
        if value in FALSE:
            return False
        self.fail(f"{value!r} is not a boolean; write true or false", param, ctx)


def normalise(arguments: list[str]) -> list[str]:
    """Return ``arguments`` in the one form that the parser takes."""
    words: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            words.extend(arguments[position:])
            break
        if re.fullmatch(r"-[a-z][a-z0-9]*(-[a-z0-9]+)*(=.*)?", word, re.DOTALL) and len(word) > 2:
            word = "-" + word if not word.startswith(("-o=", "-ojson", "-oyaml")) else word
        if word.startswith("--") and word[2:] in BOOLEANS:
            word += "=true"
        words.append(word)
    if words and words[0].startswith("-") and words[0] not in OURS:
        words.insert(0, "run")
    return words or ["run"]

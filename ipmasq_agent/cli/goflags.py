"""Arguments as Go's flag package and klog write them, made into ours.

``-enable-ipv6``, ``--enable-ipv6=true`` and ``--enable-ipv6`` are one flag to Go. A bare
boolean becomes ``--flag=true`` here, so that the parser sees one form; arguments without
a verb become ``run``.
"""

from __future__ import annotations

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
# What a Go program takes with one dash as well as with two: upstream's flags and klog's.
ONE_DASH = frozenset(
    {
        "alsologtostderr",
        "enable-ipv6",
        "logtostderr",
        "masq-chain",
        "nomasq-all-reserved-ranges",
        "random-fully",
        "stderrthreshold",
        "to-ports",
        "v",
        "version",
        "vmodule",
    }
)
# Flags of the program itself, which need no verb.
WITHOUT_VERB = frozenset({"--help", "-h", "--version"})


class GoBool(click.ParamType["bool"]):
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
    if arguments[:1] == ["lab"]:
        return arguments  # ours alone, and what follows `lab exec` is another program's
    words: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            words.extend(arguments[position:])
            break
        name = word[1:].partition("=")[0]
        if word.startswith("-") and name in ONE_DASH:
            word = "-" + word
        if word.startswith("--") and word[2:] in BOOLEANS:
            word += "=true"
        words.append(word)
    if words and words[0].startswith("-") and words[0] not in WITHOUT_VERB:
        words.insert(0, "run")
    return words or ["run"]

"""Arguments as Go's flag package and klog write them, made into ours.

``-enable-ipv6``, ``--enable-ipv6=true`` and ``--enable-ipv6`` are one flag to Go. A bare
boolean becomes ``--flag=true`` here, so that the parser sees one form; arguments without
a verb become ``run``.
"""

from __future__ import annotations

import shlex

import click

TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

KLOG_BOOLEANS = frozenset(
    {
        "add_dir_header",
        "alsologtostderr",
        "legacy_stderr_threshold_behavior",
        "logtostderr",
        "one_output",
        "skip_headers",
        "skip_log_headers",
    }
)
KLOG_VALUES = frozenset(
    {
        "log_backtrace_at",
        "log_dir",
        "log_file",
        "log_file_max_size",
        "stderrthreshold",
        "v",
        "vmodule",
    }
)
_UPSTREAM_BOOLEANS = frozenset({"enable-ipv6", "nomasq-all-reserved-ranges", "random-fully"})
# Booleans that may stand alone. Only these: a bare `--config` still takes the next word.
_OURS = frozenset({"adopt", "cleanup-on-exit", "drop-capabilities", "events"})
BOOLEANS = KLOG_BOOLEANS | _UPSTREAM_BOOLEANS | _OURS
# What a Go program takes with one dash as well as with two: upstream's flags and klog's.
ONE_DASH = KLOG_BOOLEANS | KLOG_VALUES | _UPSTREAM_BOOLEANS | {"masq-chain", "to-ports", "version"}
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
    if arguments == ["-v"]:
        return ["--version"]  # klog's takes a number
    if not arguments or arguments[0].startswith("-"):
        words = _as_upstream(arguments)
        if any(word in ("--version", "--version=true", "--version=raw") for word in words):
            return ["--version"]
        return words if words and words[0] in WITHOUT_VERB else ["run", *words]
    words = []
    for position, word in enumerate(arguments):
        if word == "--":
            return words + arguments[position:]
        words.append(_one_form(word, of_run=arguments[0] == "run"))
    return words


def _one_form(word: str, *, of_run: bool = True) -> str:
    """Return a flag with two dashes, klog's with its underscores, and a boolean with a value.

    Only `run` takes those of klog; elsewhere, and without a number, -v is shown as it was typed.
    """
    dashes = len(word) - len(word.lstrip("-"))
    name, equals, value = word[dashes:].partition("=")
    if dashes not in (1, 2) or word == "-v":
        return word
    klog = name.replace("-", "_")
    if klog in KLOG_BOOLEANS | KLOG_VALUES:
        if not of_run:
            return word
        name = klog
    if dashes == 1 and name not in ONE_DASH:
        return word
    if name in BOOLEANS and not equals:
        equals, value = "=", "true"
    return f"--{name}{equals}{value}"


def _as_upstream(arguments: list[str]) -> list[str]:
    """Return the arguments that Go's flag package reads: those before a word that is no flag.

    A boolean takes its value after ``=`` only, so in ``--enable-ipv6 true --v=2`` the word
    ends the reading, and upstream runs without what follows.
    """
    words: list[str] = []
    takes_value = False
    for position, word in enumerate(arguments):
        if takes_value:
            words.append(word)
            takes_value = False
        elif word in ("-", "--") or not word.startswith("-"):
            rest = shlex.join(arguments[position + (word == "--") :])
            if rest:
                click.echo(f"warning: ignored, as upstream's agent does: {rest}", err=True)
            break
        else:
            words.append(_one_form(word))
            takes_value = "=" not in words[-1] and words[-1] not in WITHOUT_VERB
    return words

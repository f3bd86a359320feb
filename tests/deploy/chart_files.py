"""What is written of the chart besides its values and templates: their schema, their table.

``python -m tests.deploy.chart_files`` writes both anew, from values.yaml with its comments, the
keys of the document and the flags of ``run``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from functools import cache
from typing import Any

import click
import yaml

from ipmasq_agent.cli.entry import cli
from ipmasq_agent.cli.goflags import GoBool
from ipmasq_agent.config.schema import schema as document_schema
from ipmasq_agent.planes import registry
from tests.deploy.chart import CHART
from tests.deploy.manifests import ROOT

SCHEMA = CHART / "values.schema.json"
TABLE = ROOT / "docs/helm.md"
BEGIN, END = "<!-- values -->\n", "<!-- /values -->\n"

Schema = dict[str, Any]

KEPT_BY = {
    "backend": "backend",
    "bpf-pins": None,
    "canary-configmap": "canary.enabled",
    "config": "mode",
    "configmap": "configMapName",
    "events": "events.enabled",
    "http-address": "http.address",
    "metrics-token-file": "http.tokenSecret.name",
    "node-name": None,
    "record": "record.enabled",
    "socket": None,
    "state-dir": None,
}
"""Flags that are none of ``flags``: the value that each follows, or none where mounts say it."""

_NAME: Schema = {"type": "string", "pattern": "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$"}
_QUANTITY = {"type": ["string", "number"]}
_RESOURCES = {"type": "object", "additionalProperties": _QUANTITY}


@cache
def run_options() -> tuple[click.Option, ...]:
    """Return the options of ``run`` that the environment sets too."""
    with cli.make_context("ipmasq-agent", ["run"], resilient_parsing=True) as root:
        command = cli.get_command(root, "run")
        assert command is not None
        found = [each for each in command.params if isinstance(each, click.Option)]
    return tuple(each for each in found if each.envvar)


def flag_of(option: click.Option) -> str:
    """Return an option's name as users write it, without its dashes."""
    (name,) = [each for each in option.opts if each.startswith("--")]
    return name.removeprefix("--")


def _of_flag(option: click.Option) -> Schema:
    kind = option.type
    about: Schema = {"description": option.help} if option.help else {}
    if isinstance(kind, GoBool):
        return {"type": "boolean"} | about
    if isinstance(kind, click.Choice):
        return {"enum": [*kind.choices]} | about
    if isinstance(kind, click.IntRange):
        bounds = {"minimum": kind.min, "maximum": kind.max}
        return {"type": "integer", **{k: v for k, v in bounds.items() if v is not None}} | about
    # An empty variable is as none; what an empty flag turns off is turned off in extraArgs.
    return {"type": "string", "minLength": 1} | about


def _flags() -> Schema:
    known = {flag_of(each): _of_flag(each) for each in run_options()}
    own = {flag: about for flag, about in sorted(known.items()) if flag not in KEPT_BY}
    return {"type": "object", "properties": own, "additionalProperties": False}


def _written(node: Any) -> Any:
    """Return a part of the document's schema as helm reads it.

    Some versions of helm drop a null before anybody sees it, so that a list that is null, which is
    an empty one, would mean the defaults: nobody may write one. Go's patterns cannot look ahead.
    """
    if isinstance(node, list):
        return [_written(each) for each in node if each is not None and each != {"type": "null"}]
    if not isinstance(node, dict):
        return node
    found = {key: _written(value) for key, value in node.items()}
    if isinstance(found.get("type"), list):
        left = [each for each in found["type"] if each != "null"]
        found["type"] = left if len(left) > 1 else left[0]
    if "(?=" in found.get("pattern", ""):
        del found["pattern"]
    return found


def _document() -> Schema:
    keys = _written(document_schema()["properties"])
    return {"type": "object", "properties": keys, "additionalProperties": False}


def _particular() -> dict[str, Schema]:
    """Return what the default of a value does not tell of it."""
    profile = {"type": {"enum": ["RuntimeDefault", "Localhost", "Unconfined"]}}
    return {
        "image.repository": {"type": "string", "minLength": 1},
        "image.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
        "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        "config": _document(),
        "configMapName": _NAME | {"minLength": 1},
        "moreConfigMaps": {"type": "array", "items": _NAME | {"minLength": 1}},
        "mode": {"enum": ["api", "file"]},
        "backend": {"enum": [*registry.choices()]},
        "flags": _flags(),
        "extraArgs": {"type": "array", "items": {"type": "string"}},
        "serviceAccount.name": _NAME,
        "http.address": {"enum": ["127.0.0.1", "0.0.0.0", "::"]},
        "http.port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "http.tokenSecret.name": _NAME,
        "podMonitor.interval": {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))*$"},
        "resources": {
            "type": "object",
            "properties": {"requests": _RESOURCES, "limits": _RESOURCES},
        },
        "dashboard.labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
        "updateStrategy": {
            "type": "object",
            "properties": {"type": {"enum": ["RollingUpdate", "OnDelete"]}},
            "required": ["type"],
        },
        "seccompProfile": {
            "type": "object",
            "properties": profile | {"localhostProfile": {"type": "string"}},
            "required": ["type"],
            "additionalProperties": False,
        },
        "fullnameOverride": _NAME,
    }


def _having(path: str, value: Any) -> Schema:
    """Return the schema of values that say this."""
    wanted: Schema = value if isinstance(value, dict) else {"const": value}
    for name in reversed(path.split(".")):
        wanted = {"properties": {name: wanted}, "required": [name]}
    return wanted


TOGETHER: tuple[tuple[str, Any, str, Any], ...] = (
    ("canary.enabled", True, "mode", "api"),
    ("events.enabled", True, "mode", "api"),
    ("moreConfigMaps", {"minItems": 1}, "mode", "api"),
    ("podMonitor.enabled", True, "http.address", {"enum": ["0.0.0.0", "::"]}),
    ("serviceAccount.create", False, "serviceAccount.name", {"minLength": 1}),
    ("seccompProfile.type", "Localhost", "seccompProfile.localhostProfile", {"minLength": 1}),
)
"""Where one value is so, another has to be: of each its path, and a value or a schema."""


@cache
def values() -> dict[str, Any]:
    """Return the chart's values as they are without anybody's."""
    found = yaml.safe_load((CHART / "values.yaml").read_text())
    assert isinstance(found, dict)
    return found


def described() -> Iterator[tuple[str, str]]:
    """Yield each value of values.yaml that has a comment, by its path, with the comment."""
    above: list[str] = []
    path: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        comment = re.fullmatch(r" *# (.*)", line)
        key = re.match(r"( *)([\w-]+):", line)
        if comment is not None:
            above.append(comment[1])
            continue
        if key is not None:
            path[len(key[1]) // 2 :] = [key[2]]
            if above:
                yield ".".join(path), " ".join(above)
        above.clear()


def _of_value(
    path: str, value: Any, about: dict[str, str], particular: dict[str, Schema]
) -> Schema:
    note: Schema = {"description": about[path]} if path in about else {}
    if path in particular:
        return particular[path] | note
    if isinstance(value, dict) and value:
        parts = {
            name: _of_value(f"{path}.{name}", each, about, particular)
            for name, each in value.items()
        }
        return {"type": "object", "properties": parts, "additionalProperties": False} | note
    kinds = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    return {"type": kinds[type(value)]} | note


def schema() -> Schema:
    """Return the JSON Schema of the chart's values, in the draft that every helm reads."""
    about, particular = dict(described()), _particular()
    known = {name: _of_value(name, value, about, particular) for name, value in values().items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the Helm chart of ipmasq-agent",
        "type": "object",
        # What a chart that has this one as its part tells to all parts, and whether it has it.
        "properties": known | {"global": {"type": "object"}, "enabled": {"type": "boolean"}},
        "additionalProperties": False,
        "allOf": [
            {"if": _having(path, value), "then": _having(other, needed)}
            for path, value, other, needed in TOGETHER
        ],
    }


def _leaves(path: str, value: Any, whole: Container[str]) -> Iterator[tuple[str, Any]]:
    """Yield each value by its path, but those that are ``whole`` not by parts."""
    if isinstance(value, dict) and value and path not in whole:
        for name, each in value.items():
            yield from _leaves(f"{path}.{name}", each, whole)
    else:
        yield path, value


def table() -> str:
    """Return the values as a table in Markdown.

    Raises:
        KeyError: one has no comment.
    """
    about, whole = dict(described()), _particular().keys()
    rows = ["| value | default | what it does |\n|---|---|---|\n"]
    for name, value in values().items():
        for path, default in _leaves(name, value, whole):
            rows.append(f"| `{path}` | `{json.dumps(default)}` | {about[path]} |\n")
    return "".join(rows)


def written() -> dict[str, str]:
    """Return the text of both files, by their names below the repository."""
    guide = TABLE.read_text()
    before, _, rest = guide.partition(BEGIN)
    _, _, after = rest.partition(END)
    return {
        str(SCHEMA.relative_to(ROOT)): json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
        str(TABLE.relative_to(ROOT)): f"{before}{BEGIN}{table()}{END}{after}",
    }


if __name__ == "__main__":
    for name, text in written().items():
        (ROOT / name).write_text(text)

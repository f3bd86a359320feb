"""The table of keys as a JSON Schema of the document, and as a table in Markdown."""

from __future__ import annotations

from typing import Any

from ipmasq_agent.config.keys import KEYS
from ipmasq_agent.config.model import Key

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# What the reader checks beyond it, as no schema can.
_LIMITS = (
    "The document of ipmasq-agent, or of a key of its ConfigMap; not the ConfigMap's manifest. "
    "Keys match without regard to case; other keys are ignored where one is known. What one "
    "value cannot tell by itself is for `ipmasq-agent config validate` to say: prefixes with "
    "host bits set, a prefix that is to be masqueraded and not, more entries than cidrLimit, "
    "IPv6 where it is off, a source address that is loopback, multicast or unspecified, a "
    "duration that is too long, or too short to be told from 0. Booleans are those of YAML 1.1, "
    "so that yes and on are true."
)
# Besides A to Z, what becomes one of them in lower case: the sign of the unit kelvin.
_ALSO = {"k": "\N{KELVIN SIGN}"}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a document."""
    known = "|".join(_any_case(key.name) for key in KEYS)
    return {
        "$schema": _DIALECT,
        "title": "Document of ipmasq-agent",
        "description": _LIMITS,
        "type": ["object", "null"],
        "properties": {key.name: _property(key) for key in KEYS},
        # In any other spelling a key holds the same.
        "patternProperties": {
            f"^(?:{_any_case(key.name)})$": {"$ref": f"#/properties/{key.name}"} for key in KEYS
        },
        # None of its keys known: to upstream that means the defaults, and is a slip of the pen.
        "anyOf": [
            {"maxProperties": 0},
            {"not": {"propertyNames": {"not": {"pattern": f"^(?:{known})$"}}}},
        ],
    }


def _property(key: Key[Any]) -> dict[str, Any]:
    about = ". ".join(filter(None, (key.meaning, key.kind.schema.get("description"))))
    default = key.kind.shown(key.absent)
    return {
        **key.kind.schema,
        "description": about,
        **({} if default in (None, {}, []) else {"default": default}),
    }


def _any_case(name: str) -> str:
    return "".join(
        f"[{letter.lower()}{letter.upper()}{_ALSO.get(letter.lower(), '')}]"
        if letter.isalpha()
        else letter
        for letter in name
    )


def markdown() -> str:
    """Return the keys as a table in Markdown."""
    rows = [f"| `{key.name}` | {key.default} | {key.meaning} |\n" for key in KEYS]
    return "".join(["| key | default | meaning |\n|---|---|---|\n", *rows])

"""Manifests of ConfigMaps → the documents that they hold, with their places in the outer text.

A manifest given for a document is a common slip, and none of its keys means anything to us.
What is meant by it is never in doubt, so it is unwrapped wherever documents are read: what
``config validate`` says of some bytes is then what the agent makes of them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import NamedTuple, NoReturn

import yaml

from ipmasq_agent.config.runs import items
from ipmasq_agent.config.tree import NodeTree, is_null, printable
from ipmasq_agent.errors import ConfigError

KEYS = ("config", "ip-masq-agent")
"""The keys of a ConfigMap that hold the document, in the order of preference."""
# Aliases let a text of a megabyte name more documents than there is time to read.
_MOST = 100

Fields = Mapping[str, yaml.Node]


Inner = tuple[str, str | bytes]
"""A document in a manifest: what messages call it, and its text, in place if possible."""


class _ConfigMap(NamedTuple):
    place: str
    title: str
    data: Fields
    binary: Fields

    @property
    def ours(self) -> str | None:
        """The key that is surely meant."""
        return next((key for key in KEYS if key in self.data or key in self.binary), None)


class Manifests:
    """The manifests of a text.

    Attributes:
        notes: what was passed over.
    """

    def __init__(self, tree: NodeTree, name: str) -> None:
        self._tree = tree
        self._name = name
        self._known: dict[int, Fields] = {}
        self.notes: list[str] = []

    def documents(self) -> list[Inner]:
        """Return the documents in the order in which they are merged; none if none is meant.

        Of a ConfigMap those keys count that do where it is read from the API: ``config``,
        else ``ip-masq-agent``, else all. A mapping with one of the first two counts as the
        data of one.

        Raises:
            ConfigError: there are manifests, and no ConfigMap among them that holds one.
        """
        roots = self._tree.roots()
        top = [self._fields(root) for root in roots]
        if any("kind" in fields for fields in top):
            found = [each for root in roots for each in self._configmaps(root, None)]
            if not found:
                raise ConfigError([f"{self._name}: holds manifests, and none is of a ConfigMap"])
        else:
            found = [_ConfigMap(self._name, "", fields, {}) for fields in top[:1]]
            found = [each for each in found if each.ours]
        if any(each.ours for each in found):
            self.notes += (
                f"{each.place}: {each.title} is passed over" for each in found if not each.ours
            )
            found = [each for each in found if each.ours]
        return self._inner(sorted(found, key=lambda each: each.title))

    def _configmaps(self, node: yaml.Node, listed: str | None) -> Iterator[_ConfigMap]:
        """Yield the ConfigMaps of a manifest, which may be a list.

        It is ``listed`` if it does not say so, as an item of a ConfigMapList.
        """
        fields = self._fields(node)
        kind = _text(fields, "kind") or listed or "what has no kind"
        metadata = self._fields(fields.get("metadata"))
        names = (_text(metadata, "namespace"), _text(metadata, "name"))
        title = printable(" ".join([kind, "/".join(name for name in names if name)]).strip())
        listing = fields.get("items")
        if kind == "ConfigMap":
            data, binary = (self._fields(fields.get(key)) for key in ("data", "binaryData"))
            if not data and not binary:
                self._fail(node, f"{title} has no data")
            yield _ConfigMap(self._place(node), title, data, binary)
        elif kind.endswith("List") and isinstance(listing, yaml.SequenceNode) and listed is None:
            for item in items(listing):
                yield from self._configmaps(item, kind.removesuffix("List"))
        else:
            self.notes.append(f"{self._place(node)}: {title} is passed over")

    def _inner(self, found: list[_ConfigMap]) -> list[Inner]:
        documents: list[Inner] = []
        left = len(self._tree.text)
        for each in found:
            for key in [each.ours] if each.ours else sorted({**each.data, **each.binary}):
                node = each.data.get(key) or each.binary[key]
                document = self._document(key, node, key not in each.data)
                left -= len(node.value)
                if left < 0 or len(documents) == _MOST:
                    self._fail(node, f"is more than {_MOST} documents, or one of them repeated")
                documents.append(document)
        return documents

    def _document(self, key: str, node: yaml.Node, encoded: bool) -> Inner:
        if not isinstance(node, yaml.ScalarNode) or not (
            node.tag.endswith(":str") or is_null(node)
        ):
            self._fail(node, f"{key} is not text; write `{key}: |` with the document below it")
        name = f"{self._place(node)} {printable(key)}"
        if encoded:
            try:
                return name, base64.b64decode("".join(node.value.split()), validate=True)
            except ValueError:
                self._fail(node, f"{key} is not base64")
        in_place = self._in_place(node) if node.style == "|" else None
        return (name, node.value) if in_place is None else (self._name, in_place)

    def _in_place(self, node: yaml.ScalarNode) -> str | None:
        """Return the text of a literal block at its lines and columns in the outer text.

        YAML that is indented as a whole means the same, but for the marks around documents.
        None where the text does not stand there line by line.
        """
        first = node.start_mark.line + 1
        wanted = node.value.rstrip("\n").split("\n")
        lines = self._tree.lines[first : first + len(wanted)]
        filled = next((n for n, line in enumerate(wanted) if line.strip()), 0)
        indent = len(lines[filled]) - len(lines[filled].lstrip(" ")) if filled < len(lines) else 0
        indent -= len(wanted[filled]) - len(wanted[filled].lstrip(" "))
        if [line[indent:].removesuffix("\r") for line in lines] != wanted:
            return None
        if wanted[filled].rstrip() == "---":
            lines[filled] = "#"  # which keeps what follows from being read as JSON, too
            wanted[filled] = ""
        if any(line.startswith(("---", "...", "%")) for line in wanted):
            return None
        return "\n" * first + "\n".join(lines) + "\n"

    def _fields(self, node: yaml.Node | None) -> Fields:
        """Return the values of a mapping by key; nothing of what is none."""
        if not isinstance(node, yaml.MappingNode):
            return {}
        if id(node) not in self._known:
            self._known[id(node)] = {
                key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)
            }
        return self._known[id(node)]

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def _fail(self, node: yaml.Node, text: str) -> NoReturn:
        raise ConfigError([f"{self._place(node)}: {printable(text)}"])


def _text(fields: Fields, key: str) -> str:
    node = fields.get(key)
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""

"""One reading of one document: which keys it has, and what is wrong or odd about it.

Problems are collected and reading goes on, so that all of them are shown at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NoReturn

import yaml

from ipmasq_agent.config.model import Flags, Key
from ipmasq_agent.config.tree import NodeTree, is_null, printable
from ipmasq_agent.errors import ConfigError

# A document of 100,000 typing errors should not print 100,000 lines.
SHOWN = 20
# What the converter can't make a key of an object.
_NO_KEYS = frozenset({"tag:yaml.org,2002:null", "tag:yaml.org,2002:timestamp"})
_EXAMPLE = "write keys, as in `nonMasqueradeCIDRs: [10.0.0.0/8]`"


class Reading:
    """A document that is being read.

    Attributes:
        nodes: the values of each key that it has; the last one counts.
        is_json: it is strict JSON rather than YAML.
        profile: whose meaning all documents have, once that is known.
        problems: what makes it unusable.
        warnings: what its author may want to know.
        unknown: its first key that is not known.
    """

    def __init__(self, name: str, tree: NodeTree, flags: Flags, keys: Iterable[Key[Any]]) -> None:
        self.name = name
        self.flags = flags
        self.is_json = tree.is_json
        self.profile: str | None = None
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.unknown: yaml.ScalarNode | None = None
        self._spellings = {key.name.lower(): key for key in keys}
        self.nodes = self._keys(tree)

    # -- places -------------------------------------------------------------------------

    def place(self, node: yaml.Node | None) -> str:
        """Return ``NAME:LINE:COLUMN`` of a node, both from 1."""
        if node is None:
            return self.name
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def problem(self, node: yaml.Node | None, text: str) -> None:
        """Note what makes the document unusable."""
        self.problems.append(f"{self.place(node)}: {printable(text)}")

    def warn(self, node: yaml.Node | None, text: str) -> None:
        """Note what the document's author may want to know."""
        self.warnings.append(f"{self.place(node)}: {printable(text)}")

    # -- structure ----------------------------------------------------------------------

    def _keys(self, tree: NodeTree) -> Mapping[Key[Any], Sequence[yaml.Node]]:
        """Return the values of each known key.

        Several come from spellings of a key, and from JSON that repeats one: the decoder
        takes them one after the other, and refuses the document where it can't take one.
        """
        if tree.more:
            self.warn(None, "only the first YAML document is used; remove what follows it")
        root = tree.root
        if root is None or is_null(root):
            return {}
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else f"the text {shown(root)}"
            self._refuse(root, f"the document is {kind}; {_EXAMPLE}")
        written: list[tuple[str, yaml.Node, yaml.Node]] = []
        places: dict[str, int] = {}
        for merged, key_node, value_node in tree.pairs():
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag in _NO_KEYS:
                self.problem(key_node, f"{shown(key_node)} cannot be a key; write a word")
                continue
            word: str = key_node.value
            key = self._spellings.get(word.lower())
            if key is None:
                if not self.unknown:
                    self.unknown = key_node
                # The search for a near word is slow, and only so many warnings are shown.
                near = self._nearest(word) if len(self.warnings) < SHOWN else ""
                self.warn(key_node, f"unknown key {word!r} is ignored{near}")
            elif merged and word in places:
                continue
            else:
                if word in places:
                    self.warn(key_node, f"{key.name} is set twice; the first has no effect")
                if word in places and not self.is_json:
                    written[places[word]] = word, key_node, value_node
                else:
                    places[word] = len(written)
                    written.append((word, key_node, value_node))
        return self._decided(written)

    def _decided(
        self, written: list[tuple[str, yaml.Node, yaml.Node]]
    ) -> Mapping[Key[Any], Sequence[yaml.Node]]:
        """Bring the spellings of a key into the order in which they overwrite each other.

        From YAML they reach the decoder sorted bytewise, from JSON in the order of the
        document.
        """
        values: dict[Key[Any], list[yaml.Node]] = {}
        spelt: dict[Key[Any], str] = {}
        for word, key_node, value_node in (
            written if self.is_json else sorted(written, key=itemgetter(0))
        ):
            key = self._spellings[word.lower()]
            if spelt.setdefault(key, word) != word:
                self.warn(key_node, f"{key.name} is set in two spellings; only one has an effect")
            values.setdefault(key, []).append(value_node)
        return values

    def _nearest(self, written: str) -> str:
        """Return the question whether a known key was meant, if one is near."""
        near = difflib.get_close_matches(written.lower(), self._spellings, n=1, cutoff=0.6)
        return "".join(f"; did you mean {self._spellings[key].name}?" for key in near)

    def refuse_unknown(self) -> None:
        """Refuse a document none of whose keys is known.

        To upstream it means the defaults; whoever wrote it meant something else.

        Raises:
            ConfigError: always.
        """
        node = self.unknown
        word = node.value if node else ""
        self._refuse(
            node, f"none of its keys is known, like {word!r}; {_EXAMPLE}{self._nearest(word)}"
        )

    def _refuse(self, node: yaml.Node | None, text: str) -> NoReturn:
        raise ConfigError([f"{self.place(node)}: {printable(text)}"])


def shown(node: yaml.Node) -> str:
    """Return a value as messages show it."""
    if isinstance(node, yaml.ScalarNode):
        return json.dumps(node.value) if node.tag.endswith(":str") else str(node.value) or "null"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"

"""Text of a document → a tree of YAML nodes with their places, in bounded time and memory.

Whoever may edit the ConfigMap must not be able to end the agent. Libraries compose a YAML
document by recursion, which a megabyte of ``[`` drives through the end of the C stack, and
expand merge keys by copying, which doubles at every level; here both are plain loops.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, NoReturn, TypeVar

import yaml

from ipmasq_agent.config.runs import JSON_RUN, JSON_TEXT, Cut, NotARunError, Run, items
from ipmasq_agent.errors import ConfigError

MAX_DEPTH = 100
PLAIN = (None, "")
"""The styles of a scalar that stands without quotes."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MERGE = "tag:yaml.org,2002:merge"
_TAG = "tag:yaml.org,2002:"
_NULL, _NULLS = "tag:yaml.org,2002:null", ("", "~", "null", "Null", "NULL")
_LONGEST = 400
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Loosely typed: libyaml's marks and the ones that we make are not those of the type stubs.
_Mark: Any = yaml.Mark
_Scalar: Any = yaml.ScalarNode
_SEQUENCE: tuple[Any, str] = (yaml.SequenceNode, "seq")
_MAPPING: tuple[Any, str] = (yaml.MappingNode, "map")
# The tokens of JSON that is known to be valid. A string holds no raw line break or quote.
_JSON_TOKEN = re.compile(r'[\[\]{}]|"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*|true|false|null|\n')
_HINTS = {
    "\t": "; YAML is indented with blanks, not tabs",
    ":": '; an entry that begins with a colon needs quotes, as in ["::/0"]',
}
_JSON_CONSTANT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|(NaN|-?Infinity)')


T = TypeVar("T")


class NodeTree:
    """The first document of a text: its root, and whether more documents follow it.

    Attributes:
        root: the top node, or None where the text holds nothing but comments.
        is_json: the text is strict JSON rather than YAML.
        more: something follows it, further documents or text after their end.
    """

    def __init__(self, content: bytes | str, name: str) -> None:
        """Read ``content``, which messages call ``name``.

        Raises:
            ConfigError: it is not text, not YAML or JSON, or nested beyond ``MAX_DEPTH``.
        """
        self._name = name
        self.text = content if isinstance(content, str) else _decoded(content, name)
        self.more = False
        # As YAML's encoding, UTF-16 is welcome; JSON is what begins with the byte {.
        utf16 = isinstance(content, bytes) and content.startswith(_UTF16)
        self.is_json = self.text.lstrip().startswith("{") and not utf16
        self.root = self._json() if self.is_json else self._yaml()

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the text."""
        return self.text.split("\n")

    def roots(self) -> list[yaml.Node]:
        """Return the top node of each document of the text that is not empty.

        Raises:
            ConfigError: one of them is not YAML.
        """
        roots = [self.root] if self.is_json or not self.more else self._parsed(self._all)
        return [root for root in roots if root is not None and not is_null(root)]

    # -- YAML ---------------------------------------------------------------------------

    def _yaml(self) -> yaml.Node | None:
        cut = Cut(self.text)
        if cut:
            try:
                root = self._loaded(cut.text, partial(self._first, cut=cut))
                cut.end()
                return root
            except (yaml.YAMLError, ConfigError, NotARunError):
                pass  # what is wrong, if anything is, shows in the whole text
        return self._parsed(self._first)

    def _parsed(self, compose: Callable[[Any], T]) -> T:
        try:
            return self._loaded(self.text, compose)
        except yaml.MarkedYAMLError as cause:
            self._not_yaml(cause)
        except yaml.reader.ReaderError as cause:
            self._not_a_character(cause)

    def _loaded(self, text: str, compose: Callable[[Any], T]) -> T:
        loader = _Loader(text)
        try:
            return compose(loader)
        finally:
            loader.dispose()

    def _first(self, loader: Any, cut: Cut | None = None) -> yaml.Node | None:
        """Compose the first document; of what follows it only that it does is of interest."""
        root = self._composed(loader, cut)
        try:
            self.more = not isinstance(loader.peek_event(), yaml.StreamEndEvent | None)
        except yaml.YAMLError:
            self.more = True
        return root

    def _all(self, loader: Any) -> list[yaml.Node | None]:
        roots = []
        while not isinstance(loader.peek_event(), yaml.StreamEndEvent | None):
            roots.append(self._composed(loader, None))
        return roots

    def _composed(self, loader: Any, cut: Cut | None) -> yaml.Node | None:
        """Compose the next document from its events, without recursion."""
        root: yaml.Node | None = None
        anchors: dict[str, yaml.Node] = {}
        # Collections that are open, each with the key that waits for its value.
        open_: list[tuple[yaml.CollectionNode, list[yaml.Node]]] = []
        while True:
            event: Any = loader.get_event()
            node: yaml.Node
            if isinstance(event, yaml.ScalarEvent):
                tag, style = event.tag, event.style
                if tag is None or tag == "!":
                    tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
                elif style in PLAIN:
                    style = "'"  # what has a tag is no more to be guessed at than what is quoted
                node = _Scalar(tag, event.value, event.start_mark, event.end_mark, style)
            elif isinstance(event, yaml.AliasEvent):
                name = event.anchor or ""
                if name not in anchors:
                    self._fail(event.start_mark, f"the anchor &{name[:_LONGEST]} is not defined")
                node = anchors[name]
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                if len(open_) == MAX_DEPTH:
                    self._fail(event.start_mark, f"is nested more than {MAX_DEPTH} levels deep")
                kind, word = _MAPPING if isinstance(event, yaml.MappingStartEvent) else _SEQUENCE
                node = kind(event.tag or _TAG + word, [], event.start_mark, event.end_mark)
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                open_.pop()
                continue
            elif isinstance(event, yaml.DocumentStartEvent):
                if event.version not in (None, (1, 1)):
                    self._fail(
                        event.start_mark,
                        "says that it is YAML 1.2, and is read as YAML 1.1, to which yes is true "
                        "and 010 is 8; remove the line %YAML",
                    )
                continue
            elif isinstance(event, yaml.DocumentEndEvent):
                return root
            elif isinstance(event, yaml.StreamEndEvent):
                return None
            else:
                continue
            if getattr(event, "anchor", None) and not isinstance(event, yaml.AliasEvent):
                anchors[event.anchor] = node
            if open_:
                _put(node, *open_[-1])
            else:
                root = node
            if cut is not None:
                cut.put(event, open_[-1][0] if open_ else None)
            if isinstance(node, yaml.CollectionNode) and not isinstance(event, yaml.AliasEvent):
                open_.append((node, []))

    def _not_yaml(self, cause: yaml.MarkedYAMLError) -> NoReturn:
        mark: Any = cause.problem_mark or cause.context_mark
        what = " ".join(str(part) for part in (cause.context, cause.problem) if part)
        hint = ""
        if mark is not None:
            lines = self.lines
            if mark.line >= len(lines):  # libyaml ends a last line that the text leaves open
                mark = _Mark(self._name, len(self.text), len(lines) - 1, len(lines[-1]), None, None)
            hint = _HINTS.get(lines[mark.line][mark.column : mark.column + 1], "")
        self._fail(mark, f"is not YAML: {what}{hint}", cause)

    def _not_a_character(self, cause: yaml.reader.ReaderError) -> NoReturn:
        # libyaml counts bytes, PyYAML's own reader counts characters.
        before = self.text[: cause.position]
        if _Loader.__name__ == "CSafeLoader":
            before = self.text.encode()[: cause.position].decode(errors="replace")
        raise _refusal(
            self._name, _position(before), "is not YAML: it holds a control character"
        ) from cause

    def _fail(self, mark: Any, text: str, cause: Exception | None = None) -> NoReturn:
        position = (mark.line + 1, mark.column + 1) if mark else ()
        raise _refusal(self._name, position, text) from cause

    # -- pairs --------------------------------------------------------------------------

    def pairs(self) -> Iterator[tuple[bool, yaml.Node, yaml.Node]]:
        """Yield (is merged, key, value) of the top mapping, merge keys followed.

        Own pairs come first, then what ``<<: *defaults`` merges, in falling precedence. A
        mapping that is merged twice, or into itself, adds nothing the second time.

        Raises:
            ConfigError: something other than a mapping is merged.
        """
        seen: set[int] = set()
        waiting: list[yaml.Node] = [] if self.root is None else [self.root]
        while waiting:
            mapping = waiting.pop()
            if not isinstance(mapping, yaml.MappingNode):
                self._fail(mapping.start_mark, "is merged with <<, and is not a mapping")
            if id(mapping) in seen:
                continue
            seen.add(id(mapping))
            sources: list[yaml.Node] = []
            for key, value in mapping.value:
                if key.tag != _MERGE:
                    yield mapping is not self.root, key, value
                elif isinstance(value, yaml.SequenceNode):
                    sources += items(value)
                else:
                    sources.append(value)
            waiting += reversed(sources)

    # -- JSON ---------------------------------------------------------------------------

    def _json(self) -> yaml.Node:
        """Check the text as strict JSON, then note where each value stands."""
        try:
            json.loads(self.text, parse_constant=_no_constant, parse_int=str, parse_float=str)
        except json.JSONDecodeError as cause:
            text = f"{cause.msg}; a document that begins with {{ is read as JSON"
            raise _refusal(self._name, (cause.lineno, cause.colno), text) from cause
        except RecursionError as cause:
            self._fail(None, f"is nested more than {MAX_DEPTH} levels deep", cause)
        except _NotJson as cause:
            found = next(w for w in _JSON_CONSTANT.finditer(self.text) if w[1])
            position = _position(self.text[: found.start()])
            raise _refusal(self._name, position, f"{cause} is not JSON") from cause
        root: yaml.Node | None = None
        open_: list[tuple[yaml.CollectionNode, list[yaml.Node]]] = []
        line = line_start = after = 0
        while token := _JSON_TOKEN.search(self.text, after):
            word, start = token[0], token.start()
            after = token.end()
            if word == "\n":
                line, line_start = line + 1, token.end()
                continue
            if word in "]}":
                open_.pop()
                continue
            parent = open_[-1][0] if open_ else None
            if word[0] == '"' and isinstance(parent, yaml.SequenceNode):
                run = JSON_RUN.match(self.text, start)
                if run:
                    parent.value.append(Run(run[0], JSON_TEXT, line, start - line_start))
                    after = run.end()
                    if "\n" in run[0]:
                        line += run[0].count("\n")
                        line_start = self.text.rindex("\n", start, after) + 1
                    continue
            mark = _Mark(self._name, start, line, start - line_start, None, None)
            node: yaml.Node
            if word in "[{":
                if len(open_) == MAX_DEPTH:
                    self._fail(mark, f"is nested more than {MAX_DEPTH} levels deep")
                kind, tag = _SEQUENCE if word == "[" else _MAPPING
                node = kind(_TAG + tag, [], mark, mark)
            else:
                node = _json_scalar(word, mark)
            if open_:
                _put(node, *open_[-1])
            else:
                root = node
            if isinstance(node, yaml.CollectionNode):
                open_.append((node, []))
        assert root is not None  # json.loads accepted the text, so it holds a value
        return root


def _decoded(content: bytes, name: str) -> str:
    """Return the text of a document, in one of the encodings that YAML knows by their marks.

    Raises:
        ConfigError: it is in another one, or damaged.
    """
    coding = "UTF-16" if content.startswith(_UTF16) else "UTF-8"
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode(coding)
    except UnicodeDecodeError as cause:
        position = _position(content[: cause.start].decode(coding))
        raise _refusal(name, position, f"is not {coding} text") from cause


def is_null(node: yaml.Node) -> bool:
    """Whether a value is null, however it is written.

    A tag alone makes none: ``!!null [10.0.0.0/8]`` is a list to Go's YAML, and must not
    empty it here.
    """
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL and node.value in _NULLS


def printable(text: str) -> str:
    """Return one line that is safe to print: short, without control characters."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 3]}..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _position(before: str) -> tuple[int, int]:
    """Return line and column, from 1, of what follows ``before``."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _refusal(name: str, position: tuple[int, ...], text: str) -> ConfigError:
    return ConfigError([f"{':'.join(map(str, (name, *position)))}: {text}"])


class _NotJson(Exception):
    """A word that Python's JSON takes and JSON has not: NaN and the infinities."""


def _no_constant(word: str) -> NoReturn:
    raise _NotJson(word)


def _json_scalar(word: str, mark: yaml.Mark) -> yaml.ScalarNode:
    if word[0] == '"':
        return yaml.ScalarNode(_TAG + "str", json.loads(word), mark, mark, '"')
    if word in ("true", "false"):
        return yaml.ScalarNode(_TAG + "bool", word, mark, mark)
    if word == "null":
        return yaml.ScalarNode(_TAG + "null", word, mark, mark)
    tag = "int" if word.lstrip("-").isdigit() else "float"
    return yaml.ScalarNode(_TAG + tag, word, mark, mark)


def _put(node: yaml.Node, parent: yaml.CollectionNode, waiting: list[yaml.Node]) -> None:
    """Add ``node`` to an open collection; in a mapping, keys and values alternate."""
    if isinstance(parent, yaml.SequenceNode):
        parent.value.append(node)
    elif waiting:
        parent.value.append((waiting.pop(), node))
    else:
        waiting.append(node)

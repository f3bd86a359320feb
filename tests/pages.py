"""What tests ask of a page that is one file: that it is whole, and asks for nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

_VOID = {"meta", "img", "br", "link", "hr", "input"}


class Seen(HTMLParser):
    """What a page is made of; elements that are not closed in order fail."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def asks_for_nothing(text: str) -> Seen:
    """Check that a page needs nothing from elsewhere, and that its links lead to its own places."""
    found = Seen(text)
    assert not re.search(r"https?://|url\(|@import", text)
    places = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    for tag, attrs in found.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("src") or "data:").startswith("data:")
        link = attrs.get("href")
        assert link is None or (link[:1] == "#" and link[1:] in places), link
    policy = [attrs for attrs in found.all("meta") if "http-equiv" in attrs]
    assert "default-src 'none'" in (policy[0]["content"] or "")
    return found


def figures(text: str) -> dict[str, ElementTree.Element]:
    """Return the figures of a page that have a place, by its name."""
    plain = text.replace("<br>", "<br/>").replace("&nbsp;", "\u00a0")
    found = re.findall(r'<figure id="(.+?)">(.*?)</figure>', plain, re.DOTALL)
    return {place: ElementTree.fromstring(f"<figure>{inner}</figure>") for place, inner in found}


def words(element: ElementTree.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())

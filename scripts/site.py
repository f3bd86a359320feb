"""What mkdocs has to be told of a repository whose pages are read on the forge as well."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Let links to files outside docs/ lead to the repository, where they are."""
    return re.sub(r"\]\(\.\./([^)\s]+)\)", rf"]({config.repo_url}/blob/main/\1)", markdown)

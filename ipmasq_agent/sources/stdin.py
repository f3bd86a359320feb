"""A document on standard input, for verbs that read it once."""

from __future__ import annotations

import sys
import time

from ipmasq_agent.errors import SourceError, UsageError
from ipmasq_agent.sources import Document, Part, Sink, revision_of


class StdinSource:
    """Implements ``Source`` for ``-``, as far as that makes sense: it can be read, once."""

    name = "standard input"
    cheap = False
    heard = None

    def read(self) -> Document:
        """Return all of standard input.

        Raises:
            SourceError: it is a terminal, so somebody forgot the pipe; or it holds nothing,
                which is what a program leaves that failed before it.
        """
        if sys.stdin.isatty():
            raise SourceError(
                "standard input is a terminal", remedy="pipe a document in, or name a file"
            )
        content = sys.stdin.buffer.read()
        if not content:
            raise SourceError(
                "standard input is empty",
                remedy="see what the program before the pipe says; the defaults are what "
                "`ipmasq-agent config defaults` prints",
            )
        parts = (Part(self.name, content),)
        return Document(self.name, parts, revision_of(parts), time.monotonic())

    def start(self, sink: Sink) -> None:
        """Refuse: a pipe cannot be watched for changes."""
        raise UsageError("`run` cannot watch standard input", remedy="give it a file")

    def refresh(self) -> None:
        """Refuse, as ``start`` does."""
        raise UsageError("standard input can be read once only")

    def stop(self) -> None:
        """There is nothing to end."""
        return None

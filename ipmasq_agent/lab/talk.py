"""Talking to a program that lives in a host: orders and answers are lines of JSON."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import Any

from ipmasq_agent.errors import LabError


class Talk:
    """A conversation: each order has one answer, in the same sequence."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process

    def ask(self, **order: object) -> dict[str, Any]:
        """Give an order and return the answer."""
        self.tell(**order)
        return self.answer()

    def tell(self, **order: object) -> None:
        """Give an order whose answer is fetched later, so that several can be at work."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as cause:
            raise LabError("somebody who lives in the lab died") from cause

    def answer(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            LabError: the other side died.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError("somebody who lives in the lab died")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Hang up; the other side may live on."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

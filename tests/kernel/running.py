"""The agent as a process of its own, and what tests wait for and do to its document."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.waiting import DEADLINE, wait_until

# Whatever this test run ignores: `nohup make test` hang-ups, one in a script's background also
# Ctrl-C. What is ignored stays so in a child, and in programs that respect it.
HEARING = ("/usr/bin/env", "--default-signal=HUP,INT,TERM")


class Running:
    """An agent in the namespace that the test has entered."""

    def __init__(self, log: Path, *flags: str, under: Sequence[str] = ()) -> None:
        self.log = log
        self.address = "127.0.0.1:9797"
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "ipmasq_agent", *flags], stdout=out, stderr=out
            )

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def status(self) -> dict[str, Any]:
        code, body = self.get("/status")
        answer: dict[str, Any] = json.loads(body) if code == 200 else {}
        return answer

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.get("/readyz")[0] == 200

    def wait_ready(self) -> None:
        try:
            wait_until(self.ready, "ready")
        except AssertionError as late:
            raise AssertionError(f"{late}: {self.get('/readyz')}\n{self.log.read_text()}") from late

    def gaps(self) -> dict[str, list[float]]:
        """Return the seconds from each write to the next, by family; its log is JSON."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        times: dict[str, list[float]] = {}
        for line in lines:
            if line["message"] in ("rules applied", "rules healed"):
                moment = datetime.fromisoformat(line["time"]).timestamp()
                times.setdefault(line["family"], []).append(moment)
        return {f: [b - a for a, b in itertools.pairwise(t)] for f, t in times.items()}

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE)


def write(path: Path, text: str) -> None:
    """Replace a document as careful programs do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)

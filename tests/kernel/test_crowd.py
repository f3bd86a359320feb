"""Whoever reaches the agent's port, however many and however slow, disturbs none of its work."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.kernel.running import Running, write
from tests.netns import Namespace
from tests.waiting import wait_until

# Makes connections until it is told to stop, a number at least, of which 300 stay open: one says
# nothing, one a word of its request at a time, one takes no answer, one sends nonsense.
CROWD = """\
import collections, contextlib, select, socket, sys, time
ask = b"GET /metrics HTTP/1.1\\r\\n"
words = (b"", ask, ask + b"\\r\\n", b"\\0" * 9000)
held, made = collections.deque(), 0
while made < int(sys.argv[1]) or not select.select([sys.stdin], [], [], 0)[0]:
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", 9797))
    try:
        one.getpeername()
    except OSError:  # nobody let it in: so many wait there
        one.close()
        time.sleep(0.001)
        continue
    held.append(one)
    made += 1
    for each, word in ((one, words[made % 4]), *((each, b"X") for each in list(held)[:8])):
        with contextlib.suppress(OSError):
            each.send(word)
    if len(held) > 300:
        held.popleft().close()
print(made)
"""
# Of threads at work, and of programs that they run, when they are counted.
_PASSING = 4
CANARIES = ("canary-51d8", "canary-e0b7")


def document(number: int) -> str:
    return f"nonMasqueradeCIDRs: [10.0.0.0/8, 198.18.{number}.0/24]\n"


def opened(agent: Running) -> int:
    """Return how many descriptors and threads it has."""
    return sum(len(os.listdir(f"/proc/{agent.process.pid}/{of}")) for of in ("fd", "task"))


@pytest.mark.parametrize(
    "connections", [2_000, pytest.param(10_000, marks=pytest.mark.long)], ids="{:,}".format
)
def test_a_crowd_of_connections_holds_up_no_pass_and_leaves_nothing_open(
    in_ns: Namespace, tmp_path: Path, run: Callable[..., Running], connections: int
) -> None:
    path = tmp_path / "document"
    path.write_text(document(0))
    agent = run("run", f"--config={path}", "--backend=nftables")
    agent.wait_ready()
    # What is loaded only for the first of them belongs to the agent.
    assert agent.get("/metrics")[0] == agent.get("/status")[0] == 200
    before = opened(agent)
    with subprocess.Popen(
        [sys.executable, "-c", CROWD, str(connections)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as crowd:
        for number in range(1, 6):
            write(path, document(number))
            wait_until(partial(in_force, number), "in force")
        assert crowd.poll() is None
        told, _ = crowd.communicate()
    assert int(told) >= connections
    agent.wait_ready()
    assert agent.get("/healthz")[0] == 200
    wait_until(lambda: opened(agent) <= before + _PASSING, "nothing is left open")


def in_force(number: int) -> bool:
    """Whether the kernel holds this document's prefix."""
    listing = ["nft", "list", "ruleset"]
    told = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    return f"198.18.{number}.0" in told


def asked(path: str, token: str | None) -> int:
    """Return the status of an answer on the agent's port."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:9797{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code


def test_with_a_token_file_the_port_tells_health_to_all_and_the_rest_to_who_knows_it(
    in_ns: Namespace, tmp_path: Path, run: Callable[..., Running]
) -> None:
    path, token = tmp_path / "document", tmp_path / "token"
    path.write_text(document(0))
    token.write_text(f"{CANARIES[0]}\n")
    words = (f"--config={path}", "--backend=nftables", f"--metrics-token-file={token}")
    agent = run("run", *words)
    agent.wait_ready()
    assert [asked(page, None) for page in ("/healthz", "/readyz", "/")] == [200] * 3
    for page in ("/metrics", "/status", "/metrics?x=1"):
        assert [asked(page, each) for each in (None, "", CANARIES[1], CANARIES[0])] == [
            401,
            401,
            401,
            200,
        ]
    write(token, CANARIES[1])
    assert [asked("/metrics", each) for each in CANARIES] == [401, 200]
    token.unlink()
    assert asked("/metrics", CANARIES[1]) == 500
    # Its own verbs ask on the local socket, which is root's alone.
    done = subprocess.run(
        [sys.executable, "-m", "ipmasq_agent", "status"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not any(word in agent.log.read_text() for word in CANARIES)


def test_a_token_file_without_a_token_is_an_error_at_the_start(
    in_ns: Namespace, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("\n")
    for name, told in (("empty", "holds no token"), ("absent", "No such file")):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ipmasq_agent",
                "run",
                f"--metrics-token-file={tmp_path / name}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert told in done.stderr
        assert "--metrics-token-file" in done.stderr

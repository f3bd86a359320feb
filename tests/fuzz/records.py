"""What was recorded or kept in files, by us, by others and by hand."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipmasq_agent.agent import record as records
from ipmasq_agent.agent.kept import Kept
from ipmasq_agent.answers.recorded import recorded
from ipmasq_agent.planes.cilium.decide import NOTHING, parse_listing, policy_of
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import Flow
from ipmasq_agent.sources.pod_networks import parse_nodes
from ipmasq_agent.sources.pods import pods_of_file
from ipmasq_agent.sources.state_dir import StateDir
from tests.fuzz.doors import file_of
from tests.fuzz.kernel_state import show

PURPOSE = "fuzzing"
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # what is kept is synced, which costs


def connections(data: bytes) -> None:
    """Read connections of any form that is known: a capture, JSON, what conntrack printed."""
    for flow in recorded(io.BufferedReader(io.BytesIO(data)), "input"):
        show(flow)


def record(data: bytes) -> None:
    """Read the record of translations."""
    with file_of(data) as path:
        for _, found in records.recorded(path):
            if isinstance(found, Flow):
                show(found)


@contextmanager
def _state(content: bytes) -> Iterator[StateDir]:
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        state = StateDir(directory, PURPOSE)
        for kind in ("document", "nodes", "pod-cidrs"):
            state.write(kind, None)
        for name in os.listdir(directory):
            Path(directory, name).write_bytes(content)
        yield state


def state_file(data: bytes) -> None:
    """Read a file of the state directory, whatever is in it."""
    with _state(data) as state:
        state.read("document")


def kept(data: bytes) -> None:
    """Take back what was kept, whole and for this purpose, in whatever form.

    The first byte says which of it.
    """
    kind = ("document", "nodes", "pod-cidrs")[data[0] % 3 if data else 0]
    body = b'{"purpose": "%s", "kind": "%s", "value": %s}' % (
        PURPOSE.encode(),
        kind.encode(),
        data[1:],
    )
    with _state(hashlib.sha256(body).hexdigest().encode() + b"\n" + body) as state:
        found = Kept(state, documents=True)
        document, facts = found.document(), found.facts()
        for prefixes in facts.values():
            str(sorted(map(str, prefixes)))
    if document is not None:
        str(document.says)


def cilium(data: bytes) -> None:
    """Read a listing of Cilium's entries."""
    prefixes = parse_listing(data.decode(errors="replace"), "listing")
    for family in Family:
        policy_of(family, prefixes, NOTHING, "listing").decisions.decide(1)


def nodes(data: bytes) -> None:
    """Read nodes as kubectl prints them."""
    for node in parse_nodes(data.decode(errors="replace"), "nodes"):
        str(node)


def pods(data: bytes) -> None:
    """Read pods as kubectl prints them, or as lines."""
    with file_of(data) as path:
        pods_of_file(path)

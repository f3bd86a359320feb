"""Verbs ask the agent of their node for what nobody told them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ipmasq_agent.host import local_socket
from tests import oracle
from tests.kernel.agent import Verb
from tests.kernel.running import Running, write
from tests.netns import Namespace
from tests.waiting import wait_until

DOCUMENT = "nonMasqueradeCIDRs: [172.20.0.0/16]\nmasqLinkLocal: true\n"
OTHER = "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: true\n"
CHAIN = "--masq-chain=OURS"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(DOCUMENT)
    return path


@pytest.fixture
def agent(run: Callable[..., Running], document: Path) -> Running:
    """An agent of which nothing is as it would be without flags."""
    made = run("run", "--backend=iptables-legacy", CHAIN, f"--config={document}", "--enable-ipv6")
    made.wait_ready()
    return made


@pytest.fixture
def path() -> Path:
    return Path(os.environ["IPMASQ_SOCKET"])


def test_a_verb_without_a_flag_knows_data_plane_chain_and_document(
    agent: Running, verb: Verb, document: Path
) -> None:
    before = oracle.snapshot()
    status, out, err = verb("explain", "172.20.0.1")
    assert status == 0
    assert f"{document}:1" in out
    assert f"(pid {agent.process.pid}, since " in err
    assert "backend iptables-legacy, chain OURS" in err
    assert verb("diff")[0] == 0
    _, out, _ = verb("list", "-o", "json")
    listed = json.loads(out)
    assert (listed["backend"], listed["inForce"]) == ("iptables-legacy", True)
    assert "172.20.0.0/16" in listed["nonMasqueradeCIDRs"]
    assert oracle.snapshot() == before


def test_what_the_command_line_says_wins(agent: Running, verb: Verb, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(OTHER)
    status, out, _ = verb("diff", f"--config={other}", "-o", "json")
    found = json.loads(out)
    assert (status, found["backend"]) == (1, "iptables-legacy")
    assert any("10.0.0.0/8" in line for line in found["families"]["ipv4"]["rules"]["add"])
    _, out, _ = verb("list", "--masq-chain=NOBODYS", "-o", "json")
    assert json.loads(out)["inForce"] is False
    # Who asks nobody has the defaults: another chain, which is not there.
    _, _, err = verb("list", "--socket=")
    assert "as the agent" not in err


def test_compare_reads_what_it_is_given(agent: Running, verb: Verb, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(OTHER)
    mine = tmp_path / "config"
    assert verb("compare", str(mine), str(other))[0] == 1
    assert verb("compare", str(mine), "kernel:iptables-legacy", "--enable-ipv6")[0] == 0
    assert verb("compare", str(other), "kernel:iptables-legacy", "--enable-ipv6")[0] == 1


def test_a_refused_document_is_told_beside_the_one_in_force(
    agent: Running, verb: Verb, document: Path
) -> None:
    good = agent.status()["config"]
    assert good["inForce"] == {**good["newest"], "since": good["inForce"]["since"]}
    write(document, "nonMasqueradeCIDRs: [10.0.0.1/8]\n")
    wait_until(lambda: agent.status()["config"]["error"], "the refusal")
    status, out, _ = verb("status", "-o", "json")
    told = json.loads(out)
    assert (status, told["inSync"], told["config"]["accepted"]) == (0, True, False)
    assert "host bits" in told["config"]["error"]
    assert told["config"]["inForce"] == good["inForce"]
    newest = told["config"]["newest"]
    assert newest["hash"] not in (good["newest"]["hash"], None)
    assert told["config"]["revision"] == newest["revision"]
    assert f"pid {agent.process.pid}" in told["agent"]
    assert agent.status()["config"] == told["config"]
    text = verb("status")[1]
    assert f"revision {good['inForce']['revision']} (hash " in text
    assert f"revision {newest['revision']}, refused" in text
    # What would be applied is what is in force; why it is not the newest is told.
    status, _, err = verb("diff")
    assert status == 0
    assert "is refused, and the one before it is in force" in err

    write(document, DOCUMENT)
    wait_until(lambda: agent.status()["config"]["error"] is None, "the first one again")
    assert agent.status()["config"]["inForce"]["since"] == good["inForce"]["since"]


def test_what_the_kernel_holds_is_read_there_whatever_the_agent_believes(
    agent: Running, verb: Verb, in_ns: Namespace
) -> None:
    assert verb("status")[0] == 0
    in_ns.run(["iptables-legacy", "-t", "nat", "-F", "OURS"])
    status, out, _ = verb("status", "-o", "json")
    if status == 0:  # healed in between: it looks at this plane every few seconds
        assert agent.status()["changes"] > 1
    else:
        assert json.loads(out)["inSync"] is False


def test_an_agent_that_hangs_is_told_and_done_without(
    agent: Running, verb: Verb, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_socket, "_PATIENCE", 0.2)
    agent.process.send_signal(signal.SIGSTOP)
    # Not before each of its threads has stopped: one might answer yet.
    os.waitid(os.P_PID, agent.process.pid, os.WSTOPPED | os.WNOWAIT)
    flags = ("--backend=iptables-legacy", CHAIN, "--enable-ipv6", f"--config={document}")
    status, _, err = verb("status", *flags)
    assert status == 0
    assert "does not answer" in err
    assert "--socket" in err


def test_an_agent_of_another_namespace_is_not_asked(agent: Running, verb: Verb, path: Path) -> None:
    with Namespace() as elsewhere, elsewhere.entered():
        _, out, err = verb("list", "-o", "json")
        assert json.loads(out)["inForce"] is False
        assert "as the agent" not in err


def test_only_root_may_ask_and_nothing_stays_behind(
    agent: Running, run: Callable[..., Running], document: Path, path: Path
) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    agent.stop(signal.SIGKILL)
    assert path.exists()
    again = run("run", "--backend=iptables-legacy", CHAIN, f"--config={document}")
    again.wait_ready()
    assert again.stop() == 0
    assert not path.exists()


def test_an_agent_works_without_a_place_for_its_socket(
    run: Callable[..., Running], document: Path, verb: Verb
) -> None:
    agent = run("run", f"--config={document}", "--socket=/proc/nowhere/agent.sock")
    agent.wait_ready()
    assert "verbs cannot ask this agent" in agent.log.read_text()
    assert "choose another --socket" in agent.log.read_text()
    assert verb("diff", f"--config={document}")[0] == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "another version"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answers 404"),
    ],
)
def test_who_listens_there_and_is_no_agent_is_told_and_done_without(
    verb: Verb, path: Path, document: Path, answer: bytes, said: str
) -> None:
    def serve() -> None:
        asking, _ = listener.accept()
        with asking:
            asking.recv(4096)
            asking.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as threads:
        listener.bind(str(path))
        listener.listen()
        serving = threads.submit(serve)
        _, _, err = verb("diff", f"--config={document}")
        serving.result()
    assert said in err
    assert "as the agent" not in err


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("backend", ["iptables-nft", "bpf"])
def test_a_second_agent_stands_by_and_takes_over(
    run: Callable[..., Running],
    in_ns: Namespace,
    verb: Verb,
    tmp_path: Path,
    backend: str,
    end: signal.Signals,
) -> None:
    in_ns.lead_out()
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.write_text(DOCUMENT)
    other.write_text(OTHER)
    first = run("run", f"--backend={backend}", f"--config={mine}")
    first.wait_ready()
    written = first.status()["changes"]
    second = run("run", f"--backend={backend}", f"--config={other}")
    third = run("run", f"--backend={backend}", f"--config={other}", "--http-address=127.0.0.1:9798")
    third.address = "127.0.0.1:9798"

    def says(agent: Running, what: str) -> bool:
        assert agent.process.poll() is None, agent.log.read_text()
        return what in agent.log.read_text()

    for waiting in (second, third):
        wait_until(partial(says, waiting, f"pid {first.process.pid}"), "who holds it")
    # A rollout that starts the new agent first goes on only when that is ready.
    wait_until(lambda: third.get("/readyz")[0] == 200, "readiness while it stands by")
    assert f"pid {first.process.pid}" in third.status()["standingBy"]
    assert third.stop() == 0
    assert first.status()["changes"] == written
    assert verb("status")[0] == 0

    first.stop(end)
    wait_until(lambda: says(second, "taking over"), "the end of the first")
    second.wait_ready()
    _, out, _ = verb("list", "-o", "json")
    assert "10.0.0.0/8" in json.loads(out)["nonMasqueradeCIDRs"]
    assert second.stop() == 0

"""The lab: its story comes true, it is not fooled, and it leaves nothing behind."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ipmasq_agent.lab import netns
from ipmasq_agent.lab.capture import Capture
from ipmasq_agent.lab.children import own
from ipmasq_agent.lab.cluster import STATE, Lab
from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.scenes import SCENES
from ipmasq_agent.lab.story import Story
from ipmasq_agent.lab.topology import ENDPOINTS, FIRST_CLUSTER, NODES, POD_CIDRS
from ipmasq_agent.planes.registry import PLANES
from tests.kernel.running import HEARING
from tests.pages import asks_for_nothing, figures, words
from tests.waiting import wait_until

AGENT = [*HEARING, sys.executable, "-m", "ipmasq_agent"]
DEADLINE = 60.0


def lab(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, "lab", *words], capture_output=True, text=True, timeout=280, check=check
    )


def traces(name: str) -> list[str]:
    """Everything of a lab that is left on this machine."""
    left = [n for n in netns.names() if n.startswith(f"ipmasq-{name}-")]
    if (STATE / name).exists():
        left.append(str(STATE / name))
    return left + processes(name)


def processes(name: str) -> list[str]:
    """The command lines that speak of a lab, and of every process in its namespaces."""
    left = []
    inodes = {netns.inode(n) for n in netns.names() if n.startswith(f"ipmasq-{name}-")}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path("/proc", entry, "cmdline").read_bytes()
                inside = os.stat(f"/proc/{entry}/ns/net").st_ino in inodes
            except OSError:
                continue
            if inside or f"/{name}/".encode() in words or f"ipmasq-{name}-".encode() in words:
                left.append(words.decode(errors="replace"))
    return left


def root_namespace() -> dict[str, str]:
    """What the lab must not change: links, addresses, routes, rules and sysctls."""

    def read(*argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    sysctls = Path("/proc/sys/net")
    return {
        "links": read("ip", "-br", "link"),
        "addresses": read("ip", "-br", "address"),
        "routes": read("ip", "route", "show", "table", "all"),
        "nft": read("nft", "list", "ruleset"),
        "legacy": Path("/proc/net/ip_tables_names").read_text(),
        "sysctls": "\n".join(
            f"{path}={path.read_text().strip()}"
            for pattern in ("ipv4/ip_forward", "ipv[46]/conf/*/forwarding", "ipv4/conf/*/rp_filter")
            for path in sorted(sysctls.glob(pattern))
        ),
    }


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A lab's name of the test's own; whatever it leaves is removed, and is a failure."""
    name = f"t{os.getpid()}-{abs(hash(request.node.name)) % 10000}"
    yield name
    left = traces(name)
    if left:
        Lab(name).down()
    assert left == []


def wrong(told: dict[str, Any]) -> list[Any]:
    """Return what a story has that is not as it should be, with the step's title."""
    return [
        (step["title"], found)
        for step in told["steps"]
        for found in (*(c for c in step["checks"] if not c["ok"]), *step["failures"])
    ]


# In IPv6 it is the same story with other addresses, and a plane's two families are made by
# one code: the others tell it there among the long tests.
@pytest.mark.parametrize(
    ("backend", "ipv6"),
    [
        pytest.param(
            backend,
            ipv6,
            id=f"{backend}-{'ipv6' if ipv6 else 'ipv4'}",
            marks=pytest.mark.long if ipv6 and backend not in ("iptables-nft", "bpf") else (),
        )
        for backend in dict.fromkeys(plane.backend for plane in PLANES)
        for ipv6 in (False, True)
    ],
)
def test_the_story_comes_true(name: str, backend: str, ipv6: bool, tmp_path: Path) -> None:
    before = root_namespace()
    flags = ["--ipv6"] if ipv6 else []
    page = tmp_path / "story.html" if backend == "iptables-nft" else None
    flags += ["--html", str(page)] if page else []
    done = lab("run", "--name", name, "--backend", backend, "-o", "json", *flags, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert wrong(told) == []
    assert done.returncode == 0, done.stderr
    assert (told["backend"], told["ok"]) == (backend, True)
    assert len(told["steps"]) == len(SCENES)
    for step in told["steps"]:
        assert set(step) >= {"title", "config", "checks"}
        assert {check["protocol"] for check in step["checks"]} == {"icmp", "tcp", "udp"}
        for check in step["checks"]:
            assert set(check) >= {"from", "to", "protocol", "seen", "verdict", "expected", "ok"}
            assert check["ok"], check
    assert "did you mean" in told["steps"][3]["error"]
    kept = [c for c in told["steps"][4]["checks"] if c["connection"] == "kept"]
    assert [(c["protocol"], c["verdict"]) for c in kept] == [
        ("tcp", "non-masquerade"),
        ("udp", "non-masquerade"),
    ]
    assert root_namespace() == before
    if page:
        the_page_tells_the_same(page.read_text(), told)


def the_page_tells_the_same(text: str, told: dict[str, Any]) -> None:
    """Check what a page has of captures against what the ends of the same story say."""
    asks_for_nothing(text)
    assert len(text.encode()) < 2 << 20
    assert "The capture lost packets" not in text
    rules = re.findall(r"<h3>In force on .*?</h3><pre>(.*?)</pre>", text)
    assert len(rules) >= len(told["steps"])
    assert "172.20." in rules[0] or "172:20:" in rules[0]
    # Each is the command, and what it said: a line of rules at least, and no complaint.
    assert all(shown.count("<span>") > 1 for shown in rules)
    assert not re.search(r"(?i)error|usage|no such", "".join(rules))
    found = figures(text)
    for number, step in enumerate(told["steps"], start=1):
        here = [figure for place, figure in found.items() if place.startswith(f"s{number}-")]
        for check in step["checks"]:
            kept = check["connection"] == "kept"
            title = f"{check['from']} → {check['to']}"
            (figure,) = (
                figure
                for figure in here
                if words(figure).startswith(f"{title} ")
                and check["protocol"] in ways(figure)
                and ("opened before" in words(figure)) is kept
            )
            request, *replies = ways(figure)[check["protocol"]]
            sender, receiver = (ENDPOINTS[check[end]][0] for end in ("from", "to"))
            assert (request[0][1], request[-1][1]) == (sender, receiver), title
            assert ends(request[0]) == (check["source"], check["destination"]), title
            assert ends(request[-1]) == (check["seen"], check["destination"]), title
            assert len(replies) == check["reply"], title
            for reply in replies:
                assert [row[1] for row in reply[:: len(reply) - 1]] == [receiver, sender]
                assert ends(reply[0]) == (check["destination"], check["seen"]), title
                assert ends(reply[-1]) == (check["destination"], check["source"]), title
            assert f"expected: {check['expected']}; " in words(figure)
    assert sum(len(ways(figure)) for figure in found.values()) == sum(
        len(step["checks"]) for step in told["steps"]
    )


def test_a_page_has_of_ebpf_what_the_agent_lists(name: str) -> None:
    one = Lab(name)
    one.claim()
    try:
        with Capture() as capture:
            story = Story(one, own("ipmasq_agent"), "bpf", ipv6=False, capture=capture)
            story.prepare(lambda _: None)
            step = next(story.play(lambda _: None))
    finally:
        one.down()
    assert step.ok, step.failures
    assert set(step.rules) == {node.name for node in NODES}
    for node, rules in step.rules.items():
        command, *listed = rules.splitlines()
        assert command == "$ ipmasq-agent list --backend=bpf"
        assert ("172.20.0.0/16" in listed) == (node != "k8s-b1")


def ways(figure: ElementTree.Element) -> dict[str, list[list[list[str]]]]:
    """Protocol → the tables of its packets, request first, each with its rows of cells."""
    found: dict[str, list[list[list[str]]]] = {}
    titles = [words(title).partition(":")[0] for title in figure.iter("h3")]
    for protocol, table in zip(titles, figure.iter("tbody"), strict=True):
        rows = [[words(cell) for cell in row] for row in table]
        found.setdefault(protocol, []).append(rows)
    return found


def ends(row: list[str]) -> tuple[str, str]:
    """The addresses of a row's last two cells, without their ports."""
    source, destination = (cell.rpartition(":")[0].strip("[]") for cell in row[-2:])
    return source, destination


def test_an_agent_that_does_nothing_is_found_out_in_every_step(name: str) -> None:
    """In as many as there is time for; each waits for what never comes."""
    idle = [sys.executable, str(Path(__file__).with_name("idle_agent.py"))]
    one = Lab(name)
    one.claim()
    try:
        story = Story(one, idle, "auto", ipv6=False)
        story.prepare(lambda _: None)
        steps = list(itertools.islice(story.play(lambda _: None), 6))
    finally:
        one.down()
    for step in steps:
        masqueraded = {(c.sender, c.to) for c in step.checks if c.expected != c.source}
        wrong = {(c.sender, c.to) for c in step.checks if c.seen != c.expected}
        assert wrong == masqueraded != set(), step.scene.title
    assert {(c.to, c.seen) for c in steps[0].checks if not c.ok} == {
        ("router", "172.20.0.10"),
        ("loop1", "172.20.0.10"),
        ("loop2", "172.20.0.10"),
        ("loop1", "172.20.1.10"),
        ("b-pod", "172.20.0.10"),
        ("w1-pod", "172.30.0.10"),
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(name: str, number: int) -> None:
    before = root_namespace()
    with subprocess.Popen(
        [*AGENT, "lab", "run", "--name", name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if b"step 1" in line:
                break
        run.send_signal(number)
        run.stderr.read()
        assert run.wait(DEADLINE) == 130
    assert traces(name) == []
    assert root_namespace() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_while_the_lab_is_claimed_leaves_nothing(
    name: str, number: signal.Signals
) -> None:
    class Interrupted(Lab):
        def claim(self) -> None:
            self.state.mkdir(parents=True)
            os.kill(os.getpid(), number)
            super().claim()

    # Whatever this process was started with: nohup(1) has hang-ups ignored.
    found = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), Interrupted(name).claimed(stay=False):
            pytest.fail("the interruption was lost")
        assert traces(name) == []
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, found)


def test_a_hang_up_that_is_ignored_from_the_start_stays_so(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    monkeypatch.setattr(Lab, "claim", lambda _: os.kill(os.getpid(), signal.SIGHUP))
    monkeypatch.setattr(Lab, "down", lambda _: heard.append("down"))
    found = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Lab(name).claimed(stay=False):
            os.kill(os.getpid(), signal.SIGHUP)
            heard.append("inside")
    finally:
        signal.signal(signal.SIGHUP, found)
    assert heard == ["inside", "down"]


@pytest.mark.parametrize("backend", ["iptables-legacy", "nftables"])
def test_the_nodes_run_this_program_and_not_what_lies_in_the_current_folder(
    name: str, backend: str, tmp_path: Path
) -> None:
    # Another checkout, which would say who it is.
    decoy = tmp_path / "ipmasq_agent"
    decoy.mkdir()
    for module in ("__init__", "__main__"):
        (decoy / f"{module}.py").write_text("raise SystemExit('the decoy was started')\n")
    program = Path(sys.executable).with_name("ipmasq-agent")
    words = [str(program), "lab", "up", "--name", name, "--backend", backend]
    # Nor do settings of ours reach them, which are for this machine's agent.
    environment = {**os.environ, "IPMASQ_MASQ_CHAIN": "ELSEWHERE", "IPMASQ_CONFIGMAP": "a/b"}
    up = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert up.returncode == 0, up.stderr
    assert "the decoy" not in "".join(log.read_text() for log in STATE.glob(f"{name}/*.log"))
    lab("down", "--name", name)


def test_down_removes_what_a_killed_run_left(name: str) -> None:
    with subprocess.Popen(
        [*AGENT, "lab", "run", "--name", name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if b"step 1" in line:
                break
        run.kill()
    wait_until(lambda: not processes(name), "the agents and servers die with their maker", 60)
    assert traces(name)
    assert name in lab("list").stdout.split()
    assert name in lab("down", "--name", f"{name}-other").stdout
    lab("down", "--name", name)
    assert traces(name) == []


def test_a_lab_in_which_a_story_is_told_is_not_taken_down_by_others(name: str) -> None:
    with subprocess.Popen(
        [*AGENT, "lab", "run", "--name", name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if b"step 1" in line:
                break
        refused = lab("down", "--name", name, check=False)
        assert refused.returncode == 2
        assert f"the lab {name} is running" in refused.stderr
        assert run.poll() is None
        run.terminate()
        run.stderr.read()


def test_a_told_lab_can_be_kept(name: str) -> None:
    told = lab("run", "--name", name, "--keep", "-o", "json")
    story = json.loads(told.stdout)
    assert story["ok"]
    last = next(c for c in story["steps"][-1]["checks"] if c["from"] == "curl-pod")
    answer = lab("exec", "--name", name, "curl-pod", "curl", "-s", last["destination"]).stdout
    assert f"RemoteAddr: {last['seen']}:" in answer
    lab("down", "--name", name)


def test_a_machine_that_never_had_a_namespace_is_as_it_was(name: str) -> None:
    """Neither the mount that `ip netns` makes stays, nor a lock file of iptables."""
    script = (
        "mount --make-rprivate / && mount -t tmpfs tmpfs /run && "
        '"$@" lab up --name $0 --backend iptables-legacy >&2 && ls -A /run >&2 && '
        "\"$@\" lab down --name $0 >&2; ls -A /run; grep -c ' /run/netns ' /proc/self/mountinfo"
    )
    argv = ["unshare", "--mount", "sh", "-c", script, name, *AGENT]
    # The mounts that were there before are below the empty /run, and still listed.
    before = Path("/proc/self/mountinfo").read_text().count(" /run/netns ")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)
    assert "ipmasq-lab" in done.stderr
    assert done.stdout == f"{before}\n", done.stderr


def test_two_labs_stand_at_once_and_can_be_played_in(name: str) -> None:
    other = f"{name}b"
    try:
        assert "lab exec" in lab("up", "--name", name).stdout
        lab("up", "--name", other, "--ipv6", "--backend", "iptables-legacy")
        assert {name, other} <= set(lab("list").stdout.split())

        answer = lab("exec", "--name", name, "curl-pod", "curl", "-s", "10.10.1.200").stdout
        assert answer.startswith("Hostname: router\nRemoteAddr: 192.168.10.100:")
        answer = lab(
            "exec", "--name", other, "curl-pod", "curl", "-s", "http://[fd00:172:20:1::10]"
        ).stdout
        assert answer.startswith("Hostname: w1-pod\nRemoteAddr: [fd00:172:20::10]:")
        assert (
            lab("exec", "--name", name, "curl-pod", "sh", "-c", "exit 7", check=False).returncode
            == 7
        )
        assert lab("exec", "--name", name, "webpod", "no-such", check=False).returncode == 127
        assert lab("exec", "--name", name, "nobody", "true", check=False).returncode == 2

        again = lab("up", "--name", name, check=False)
        assert again.returncode == 2
        assert "up already" in again.stderr
        lab("down", "--name", name)
        assert traces(name) == []
        assert lab("exec", "--name", other, "curl-pod", "true").returncode == 0
    finally:
        Lab(other).down()
        Lab(name).down()
    assert traces(other) == []


def capturing(name: str, *words: str) -> subprocess.Popen[bytes]:
    """A capture that listens, and ends at Ctrl-C."""
    argv = [*AGENT, "lab", "capture", "--name", name, *words]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if b"listening on" in line:
            return process
    raise AssertionError(f"tcpdump ended with {process.wait()}")


def lines(file: Path) -> list[str]:
    argv = ["tcpdump", "-n", "-t", "-r", str(file)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()


def test_a_capture_shows_packets_before_and_after_their_masquerading(
    name: str, tmp_path: Path
) -> None:
    lab("up", "--name", name)
    file = tmp_path / "node.pcap"
    with capturing(name, "k8s-ctr", "-w", str(file), "icmp", "or", "icmp6") as process:
        lab("exec", "--name", name, "curl-pod", "curl", "-s", "10.10.1.200")
        lab("exec", "--name", name, "curl-pod", "ping", "-c", "1", "10.10.1.200")
        # Nobody masquerades it here, and so there is no way back either.
        far = ("ping", "-c", "1", "-W", "0.1", "fd00:10:10:1::200")
        lab("exec", "--name", name, "curl-pod", *far, check=False)

        def sent() -> set[str]:
            return {line.split(" IP")[1] for line in lines(file) if "echo request" in line}

        def has(*ends: str) -> bool:
            return any(all(end in packet for end in ends) for packet in sent())

        wait_until(lambda: has("6 fd00:172:20::10 > fd00:10:10:1::200"), "the last is written")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    assert has(" 172.20.0.10 > 10.10.1.200")
    assert has(" 192.168.10.100 > 10.10.1.200")
    assert not [line for line in lines(file) if "ICMP" not in line]
    with capturing(name, "router", "--interface", "eth1", "--seconds", "0.1") as process:
        assert process.stdout is not None
        magic = b"\xa1\xb2\xc3\xd4"
        assert process.stdout.read()[:4] in (magic, magic[::-1])
        assert process.wait(DEADLINE) == 0
    refused = lab(
        "capture", "--name", name, "router", "-w", str(tmp_path / "no" / "a"), check=False
    )
    assert (refused.returncode, "cannot write to" in refused.stderr) == (2, True)
    lab("down", "--name", name)


def test_another_document_can_be_given_to_a_lab_that_stands(name: str, tmp_path: Path) -> None:
    lab("up", "--name", name)
    new = tmp_path / "new.yaml"
    new.write_text("nonMasqueradeCIDRs: [10.10.1.0/24]\n")
    assert lab("config", "--name", name, str(new)).stdout.count("in force") == 2
    listed = lab("exec", "--name", name, "k8s-ctr", *AGENT, "list", "-o", "json").stdout
    answer: dict[str, Any] = json.loads(listed)
    assert answer["nonMasqueradeCIDRs"] == ["169.254.0.0/16", "10.10.1.0/24"]
    assert lab("config", "--name", name, str(new)).stdout.count("in force") == 2
    new.write_text("nonMasqueradeCIDRs: [10.10.1.1/24]\n")
    refused = lab("config", "--name", name, str(new), check=False)
    assert refused.returncode == 1
    assert "did you mean 10.10.1.0/24?" in refused.stdout
    lab("down", "--name", name)


def test_a_page_in_no_folder_is_refused_before_the_story(tmp_path: Path) -> None:
    done = lab("run", "--html", str(tmp_path / "no" / "story.html"), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no folder" in done.stderr


def test_a_name_that_cannot_be_is_refused() -> None:
    done = lab("up", "--name", "../etc", check=False)
    assert done.returncode == 2
    assert "cannot name a lab" in done.stderr


@pytest.mark.parametrize(
    ("backend", "needed"),
    [
        ("auto", {"iptables"}),
        ("iptables-legacy", {"iptables"}),
        ("ipset", {"ipset", "iptables"}),
        ("nftables", {"nftables"}),
    ],
)
def test_a_lab_says_what_its_backend_needs_before_it_makes_anything(
    name: str, backend: str, needed: set[str]
) -> None:
    done = subprocess.run(
        [*AGENT, "lab", "run", "--name", name, "--backend", backend],
        capture_output=True,
        text=True,
        env={"PATH": "/nowhere"},
        check=False,
    )
    assert done.returncode == 2
    told = done.stderr.partition("not installed: ")[2].splitlines()[0].split()
    assert set(told) & {"iptables", "ipset", "nftables"} == needed
    assert "iproute2" in told


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_replies_return_by_routes_that_nodes_announce(name: str, ipv6: bool) -> None:
    before = root_namespace()
    one = Lab(name)
    with one.claimed(stay=False):
        story = Story(one, own("ipmasq_agent"), "iptables-nft", ipv6=ipv6, routing="bgp")
        story.prepare(lambda _: None)
        steps = list(itertools.islice(story.play(lambda _: None), 4))
        argv = ["ip", "-json", "-6" if ipv6 else "-4", "route", "show"]
        routes = {r["dst"]: r["protocol"] for r in json.loads(one.run("router", argv))}
        typed = (one.state / "router.frr" / "bgpd.conf").read_text()
        # By the agent's own document and the API's nodes: nothing is said.
        said = json.loads(one.run("k8s-w1", [*own("ipmasq_agent"), "routes", "--output=json"]))
    assert [step.failures for step in steps] == [()] * 4
    assert [check for step in steps for check in step.checks if not check.ok] == []
    # Whether replies came back to the pods that loop1 saw by their own addresses.
    assert [
        {c.sender: c.reply for c in step.checks if c.to == "loop1" and c.seen == c.source}
        for step in steps
    ] == [
        {},
        {"curl-pod": False, "w1-pod": False},
        {"curl-pod": True, "w1-pod": False},
        {"curl-pod": True, "w1-pod": True},
    ]
    pods = [mirrored(cidr) if ipv6 else cidr for cidr in POD_CIDRS.values()]
    assert {cidr: routes.get(cidr) for cidr in pods} == dict.fromkeys(pods, "bgp")
    assert {
        route["prefix"]: route["node"]
        for need in said["needs"]
        if need["family"] == ("ipv6" if ipv6 else "ipv4")
        for route in need["routes"]
    } == {cidr: node.name for cidr, node in zip(pods, FIRST_CLUSTER, strict=False)}
    # Nothing was typed on the router, before or after, that is of one node.
    assert [text for text in (*pods, *(node.name for node in NODES)) if text in typed] == []
    assert traces(name) == []
    assert root_namespace() == before


def test_bgp_ends_with_a_run_that_is_killed(name: str) -> None:
    argv = [*AGENT, "lab", "run", "--routing", "bgp", "--name", name]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if b"step 4" in line:
                break
        assert [words for words in processes(name) if words.startswith("/usr/lib/frr/bgpd")]
        run.kill()
    wait_until(lambda: not processes(name), "FRR's daemons die with the lab's maker", 60)
    lab("down", "--name", name)


@pytest.mark.long
@pytest.mark.parametrize("flags", [(), ("--ipv6",)], ids=["ipv4", "ipv6"])
def test_the_story_with_bgp_comes_true(name: str, flags: tuple[str, ...]) -> None:
    done = lab("run", "--routing", "bgp", "--name", name, "-o", "json", *flags, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert wrong(told) == []
    assert len(told["steps"]) == len(SCENES) + 1

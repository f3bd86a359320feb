"""The verbs that ask and answer, in a namespace, against the real kernel."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.kernel.agent import Verb
from tests.kernel.running import HEARING
from tests.netns import Namespace
from tests.waiting import DEADLINE, wait_until


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        "# cluster only\nnonMasqueradeCIDRs:\n  - 172.20.0.0/16\n  - 192.168.10.101/32\n"
    )
    return path


@pytest.fixture
def node(in_ns: Namespace) -> Namespace:
    """A namespace with a device, an address and a route out, as a node has."""
    in_ns.lead_out()
    return in_ns


def data(output: str) -> Any:
    return json.loads(output)


def test_diff_shows_rules_and_decisions_and_changes_nothing(verb: Verb, document: Path) -> None:
    before = oracle.snapshot()
    status, out, _ = verb("diff", "--config", str(document))
    assert status == 1
    assert "+-A IP-MASQ -d 172.20.0.0/16 -j RETURN" in out
    assert re.search(r"172\.21\.0\.0-192\.168\.10\.100 +non-masquerade → masquerade", out)
    assert oracle.snapshot() == before


def test_diff_prints_exactly_what_apply_changes(verb: Verb, document: Path) -> None:
    flags = ("--config", str(document), "--enable-ipv6")
    _, out, _ = verb("diff", *flags, "-o", "json")
    promised = data(out)
    assert set(promised) >= {"backend", "changed", "families"}
    assert set(promised["families"]) == {"ipv4", "ipv6"}
    status, out, _ = verb("apply", *flags, "-o", "json")
    assert status == 0
    done = data(out)["families"]
    for family, change in promised["families"].items():
        assert done[family]["added"] == change["rules"]["add"]
        assert done[family]["removed"] == change["rules"]["remove"] == []
    assert verb("diff", *flags)[0] == 0
    assert "nothing would change" in verb("diff", *flags)[1]


def test_diff_names_the_ranges_whose_verdict_changes(
    verb: Verb, document: Path, tmp_path: Path
) -> None:
    verb("apply", "--config", str(document))
    new = tmp_path / "new.yaml"
    new.write_text(document.read_text() + "  - 10.10.1.0/24\n  - 172.20.5.0/24\n")
    status, out, err = verb("diff", "--config", str(new), "-o", "json")
    assert status == 1
    family = data(out)["families"]["ipv4"]
    assert family["rules"]["add"] == [
        "-A IP-MASQ -d 10.10.1.0/24 -j RETURN",
        "-A IP-MASQ -d 172.20.5.0/24 -j RETURN",
    ]
    assert family["decisions"] == [
        {"cidr": "10.10.1.0/24", "from": "masquerade", "to": "non-masquerade"}
    ]
    assert "172.20.5.0/24 is covered by 172.20.0.0/16 in line 3" in err


def test_a_bad_document_changes_nothing_and_says_where(verb: Verb, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("nonMasqueradeCIDRs:\n  - 10.0.0.1/8\n")
    for name in ("diff", "apply"):
        status, out, err = verb(name, "--config", str(bad))
        assert (status, out) == (2, "")
        assert f"{bad}:2:5:" in err
        assert "did you mean 10.0.0.0/8?" in err
    assert oracle.read_chain("nft", "ipv4", "IP-MASQ") is None


@pytest.mark.parametrize(
    "words",
    [
        ("apply",),
        ("diff",),
        ("status",),
        ("explain", "10.0.0.1"),
        ("config", "view"),
        ("config", "validate"),
    ],
    ids=" ".join,
)
def test_a_document_that_was_named_and_is_not_there_is_an_error_and_not_the_defaults(
    verb: Verb, tmp_path: Path, words: tuple[str, ...]
) -> None:
    nowhere, empty = tmp_path / "nope.yaml", tmp_path / "empty"
    empty.mkdir()
    for path, why in ((nowhere, "does not exist"), (empty, "exists and holds no file")):
        status, out, err = verb(*words, "--config", str(path))
        assert (status, out) == (2, "")
        assert f"{path} {why}" in err
        assert "config defaults" in err
    assert oracle.read_chain("nft", "ipv4", "IP-MASQ") is None


def test_a_document_that_nobody_named_means_the_defaults_as_it_does_to_the_agent(
    verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The environment is the agent's, to which a ConfigMap that is not there is no error.
    monkeypatch.setenv("IPMASQ_CONFIG", str(tmp_path / "none"))
    for words in (("apply",), ("diff",), ("status",), ("config", "validate")):
        status, out, err = verb(*words)
        assert status == 0, err
    assert "does not exist: the defaults hold" in out
    assert "10.0.0.0/8" in verb("list")[1]


def test_list_shows_what_the_kernel_holds_whoever_wrote_it(verb: Verb, document: Path) -> None:
    status, out, err = verb("list")
    assert (status, out) == (0, "IP PREFIX/ADDRESS\n")
    assert "nothing is masqueraded" in err
    verb("apply", "--config", str(document))
    insert = "iptables-nft -t nat -I IP-MASQ 1 -d 10.9.0.0/16 -j RETURN"
    subprocess.run(insert.split(), check=True)
    _, out, err = verb("list", "-o", "json")
    answer = data(out)
    assert answer["backend"] == "iptables-nft"
    assert answer["nonMasqueradeCIDRs"] == [
        "10.9.0.0/16",
        "169.254.0.0/16",
        "172.20.0.0/16",
        "192.168.10.101/32",
    ]
    assert err == ""


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_explain_names_rule_line_and_address(
    verb: Verb, document: Path, node: Namespace, variant: str
) -> None:
    flags = ("--config", str(document), "--backend", f"iptables-{variant}")
    verb("apply", *flags)
    kept = data(verb("explain", "172.20.3.4", "--src", "172.20.0.5", *flags, "-o", "json")[1])
    assert kept["verdict"] == "non-masquerade"
    assert kept["rule"] == "rule 2 of IP-MASQ: -d 172.20.0.0/16 -j RETURN"
    assert kept["reason"] == f"172.20.0.0/16 ({document}:3)"
    assert kept["source"] == "172.20.0.5"
    taken = data(verb("explain", "8.8.8.8", *flags, "-o", "json")[1])
    assert taken["verdict"] == "masquerade"
    assert taken["rule"].startswith("rule 4 of IP-MASQ:")
    assert (taken["source"], taken["device"]) == ("192.168.10.100", "eth1")
    text = verb("explain", "8.8.8.8", *flags)[1]
    assert "arrives from  192.168.10.100 (through eth1)" in text


@pytest.mark.parametrize("config", ["nothing: [", ""])
def test_explain_says_each_thing_once(verb: Verb, document: Path, config: str) -> None:
    verb("apply", "--config", str(document))
    document.write_text(config)
    for destination in ("172.20.3.4", "8.8.8.8", "192.168.10.100"):
        lines = verb("explain", destination, "--config", str(document))[1].splitlines()
        told = [line[16:] for line in lines[1:]]
        assert len(told) == len(set(told)), lines
        assert not any(a != b and b and b in a for a in told for b in told), lines


def test_explain_answers_for_the_parts_of_a_prefix_and_the_addresses_of_a_name(
    verb: Verb, document: Path, node: Namespace, tmp_path: Path
) -> None:
    flags = ("--config", str(document), "-o", "json")
    verb("apply", *flags[:2])
    node.run(["ip", "route", "add", "blackhole", "10.7.0.0/16"])
    whole = data(verb("explain", "172.20.0.0/14", *flags)[1])
    assert (whole["destination"], whole["verdict"], whole["reason"]) == (
        *("172.20.0.0/14", "differs"),
        None,
    )
    told = [(part["destination"], part["verdict"], part["source"]) for part in whole["answers"]]
    assert told == [
        ("172.20.0.0/16", "non-masquerade", None),
        ("172.21.0.0-172.23.255.255", "masquerade", "192.168.10.100"),
    ]
    # The same rule decides, and only the routes differ.
    routed = data(verb("explain", "10.6.0.0/15", *flags)[1])
    assert (routed["verdict"], routed["source"]) == ("masquerade", None)
    assert [part["device"] for part in routed["answers"]] == ["eth1", None]
    text = verb("explain", "172.20.4.0/24", *flags[:2])[1]
    assert text.splitlines()[0] == "172.20.4.0/24: non-masquerade"
    everything = data(verb("explain", "0.0.0.0/0", *flags)[1])["answers"]
    assert everything[0]["destination"] == "0.0.0.0"  # which the kernel takes for its own
    assert everything[1]["verdict"] == "masquerade"
    hosts = tmp_path / "hosts"
    hosts.write_text("172.20.0.5 shop.example\n8.8.8.8 shop.example\n2001:db8::5 shop.example\n")
    named = f"{sys.executable} -m ipmasq_agent explain shop.example {shlex.join(flags)}"
    for src, count in (("", 3), (" --src 172.20.0.9", 2)):
        out = node.run(["sh", "-c", f"mount --bind {hosts} /etc/hosts && {named}{src}"]).stdout
        answer = data(out)
        assert (answer["destination"], answer["verdict"]) == ("shop.example", "differs")
        assert len(answer["answers"]) == count
    assert answer["answers"][0] == data(verb("explain", "172.20.0.5", *flags, *src.split())[1])


@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ("1.2.3.4/33", "'1.2.3.4/33' has a prefix length over 32"),
        ("10.0.0.1/8", "'10.0.0.1/8' has host bits set"),
        ("x/8", "'x/8' is not a CIDR"),
        ("fe80::1%eth0", "'fe80::1%eth0' has a zone"),
        ("10.0.0.256", "'10.0.0.256' does not appear"),
    ],
)
def test_explain_says_what_is_wrong_with_what(verb: Verb, destination: str, said: str) -> None:
    status, _, err = verb("explain", destination)
    assert (status, said in err) == (2, True), err


def test_explain_speaks_ipv6_and_knows_the_nodes_own_addresses(
    verb: Verb, document: Path, node: Namespace
) -> None:
    flags = ("--config", str(document), "--enable-ipv6")
    verb("apply", *flags)
    taken = data(verb("explain", "2001:db8::1", *flags, "-o", "json")[1])
    assert (taken["verdict"], taken["source"]) == ("masquerade", "fd00:192:168:10::100")
    own = data(verb("explain", "192.168.10.100", *flags, "-o", "json")[1])
    assert own["verdict"] == "non-masquerade"
    assert "address of this node" in own["reason"]


def test_explain_says_when_the_kernel_is_not_in_step(verb: Verb, document: Path) -> None:
    verb("apply", "--config", str(document))
    subprocess.run(["iptables-nft", "-t", "nat", "-D", "IP-MASQ", "2"], check=True)
    _, out, _ = verb("explain", "172.20.3.4", "--config", str(document))
    assert "172.20.3.4: masquerade" in out
    assert "not in step" in out


def test_explain_names_the_rules_of_others_only_where_they_decide_otherwise(
    verb: Verb, document: Path
) -> None:
    docker = "iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"
    subprocess.run(docker.split(), check=True)
    flags = ("--config", str(document), "-o", "json")
    verb("apply", *flags)
    rule = "rule 1 of POSTROUTING: -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"
    assert data(verb("explain", "172.20.3.4", *flags)[1])["exceptions"] == [rule]
    assert data(verb("explain", "8.8.8.8", *flags)[1])["exceptions"] == []
    of_a_pod = verb("explain", "172.20.3.4", "--src", "172.20.0.5", *flags)[1]
    assert data(of_a_pod)["exceptions"] == []


def test_explain_knows_by_which_device_a_packet_leaves_where_rules_of_others_ask(
    verb: Verb, document: Path, node: Namespace
) -> None:
    rules = "*nat\n:AWS-SNAT-CHAIN-0 - [0:0]\n"
    rules += "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n"
    rules += "-A POSTROUTING -s 172.18.0.0/16 -j AWS-SNAT-CHAIN-0\n"
    rules += "-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL "
    rules += "-j SNAT --to-source 192.168.10.77 --random-fully\nCOMMIT\n"
    node.run(["iptables-nft-restore", "--noflush"], stdin=rules)
    flags = ("--config", str(document), "-o", "json")
    verb("apply", *flags)
    for src, seen in (("172.17.0.5", "192.168.10.100"), ("172.18.0.5", "192.168.10.77")):
        found = data(verb("explain", "172.20.3.4", "--src", src, *flags)[1])
        assert (found["verdict"], found["source"]) == ("masquerade", seen)
        assert (found["overridden"], found["exceptions"]) == (True, [])


def test_status_tells_sync_and_the_line_that_operators_know(
    verb: Verb, document: Path, node: Namespace
) -> None:
    flags = ("--config", str(document))
    assert verb("status", *flags)[0] == 1
    verb("apply", *flags)
    status, out, _ = verb("status", *flags)
    assert status == 0
    line = "Masquerading: iptables-nft [eth1] - [IPv4: Enabled, IPv6: Disabled]"
    assert out.splitlines()[0] == line
    answer = data(verb("status", *flags, "-o", "json")[1])
    assert (answer["mode"], answer["inSync"]) == ("iptables-nft", True)
    assert answer["config"]["accepted"] is True
    document.write_text("nonMasqueradeCIDRs: [10.0.0.1/8]\n")
    assert verb("status", *flags)[0] == 1


def test_verbs_that_only_ask_make_no_legacy_table(verb: Verb, document: Path) -> None:
    for words in (
        ("diff", "--config", str(document)),
        ("list",),
        ("status", "--config", str(document)),
        ("diff", "--config", str(document), "--backend", "iptables-legacy"),
        ("list", "--backend", "iptables-legacy"),
        ("cleanup",),
    ):
        verb(*words)
        assert oracle.legacy_tables("ipv4") == set()
        assert oracle.legacy_tables("ipv6") == set()


def test_config_verbs(verb: Verb, document: Path, tmp_path: Path) -> None:
    assert verb("config", "validate", "--config", str(document))[:2] == (
        0,
        f"{document} is valid\n",
    )
    view = data(verb("config", "view", "--config", str(document), "-o", "json")[1])
    assert view == {
        "nonMasqueradeCIDRs": ["172.20.0.0/16", "192.168.10.101/32"],
        "cidrLimit": 64,
        "masqLinkLocal": False,
        "masqLinkLocalIPv6": False,
        "resyncInterval": "1m0s",
    }
    defaults = tmp_path / "defaults.yaml"
    defaults.write_text(verb("config", "defaults")[1])
    again = verb("config", "view", "--config", str(defaults))[1]
    assert again == defaults.read_text()
    document.write_text("resyncInterval: 60\nnonMasqueradeCIDRs: [1.2.3.4, 10.0.0.1/8]\n")
    status, _, err = verb("config", "validate", "--config", str(document))
    assert status == 2
    assert err.count("error: ") == 3


def test_yaml_and_json_say_the_same(verb: Verb, document: Path) -> None:
    import yaml

    words = ("diff", "--config", str(document))
    as_json = data(verb(*words, "-o", "json")[1])
    assert yaml.safe_load(verb(*words, "-o", "yaml")[1]) == as_json


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("explain", "not-an-address"), "give an address"),
        (("explain", "not-an-address"), "cannot be resolved"),
        (("explain", "10.0.0.300"), "give an address"),
        (("explain", "10.0.0.1/8"), "did you mean 10.0.0.0/8?"),
        (("explain", "10.0.0.0/8", "--src", "fd00::1"), "two address families"),
        (("explain", "10.0.0.1", "--src", "fd00::1"), "two address families"),
        (("apply", "--masq-chain", "POSTROUTING"), "taken by iptables"),
        (("apply", "--config", "a", "--configmap", "b/c"), "two documents"),
        (("apply", "--backend", "nonsense"), "--backend"),
        (("apply", "--enable-ipv6=perhaps"), "true or false"),
        (("nonsense",), "nonsense"),
    ],
)
def test_a_wrong_word_is_an_error_that_says_what_to_do(
    verb: Verb, words: tuple[str, ...], complaint: str
) -> None:
    status, _, err = verb(*words)
    assert status == 2
    assert complaint in err


HELPS = (
    *((name,) for name in ("run", "apply", "diff", "list", "status", "explain", "cleanup")),
    *(("config", name) for name in ("validate", "view", "defaults")),
)


def examples(words: tuple[str, ...]) -> list[str]:
    """The command lines that a verb's help gives as examples."""
    done = subprocess.run(
        [sys.executable, "-m", "ipmasq_agent", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    after = done.stdout.partition("Examples:")[2]
    lines = [line.strip() for line in after.splitlines() if line.strip()]
    return [re.sub(r"   +\(.*\)$", "", line) for line in lines]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_help_has_examples_that_work_when_pasted(
    in_ns: Namespace, document: Path, words: tuple[str, ...]
) -> None:
    given = examples(words)
    assert given
    # As a user's shell would find the program.
    (document.parent / "bin").mkdir()
    program = document.parent / "bin" / "ipmasq-agent"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ipmasq_agent "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    for example in given:
        assert example.startswith("ipmasq-agent ")
        if "--configmap" in example:
            continue  # needs a cluster; its flags are parsed by the tests of the source
        if words == ("run",):
            argv = shlex.split(example)
            with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env) as agent:
                assert agent.stderr is not None
                heard = next(line for line in agent.stderr if "rules applied" in line)
                agent.terminate()
                assert agent.wait(20) == 0, heard
            continue
        done = subprocess.run(
            ["sh", "-c", example],
            capture_output=True,
            text=True,
            cwd=document.parent,
            env=env,
            check=False,
            timeout=30,
        )
        assert done.returncode in ((0, 1) if words[0] in ("diff", "status") else (0,)), done
        assert "Traceback" not in done.stderr


def test_a_document_may_come_through_a_pipe(in_ns: Namespace, document: Path) -> None:
    argv = [sys.executable, "-m", "ipmasq_agent"]
    piped = document.read_text() + "  - 10.0.0.1/8\n"
    done = subprocess.run(
        [*argv, "config", "validate", "--config", "-"],
        input=piped,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "standard input:5:5:" in done.stderr
    watched = subprocess.run(
        [*argv, "run", "--config=-", "--http-address="], capture_output=True, text=True, check=False
    )
    assert watched.returncode == 2
    assert "cannot watch standard input" in watched.stderr
    silent = subprocess.run([*argv, "run", "--events"], capture_output=True, text=True, check=False)
    assert silent.returncode == 2
    assert "--events writes to the API" in silent.stderr


def test_output_is_plain_off_a_terminal(in_ns: Namespace, document: Path) -> None:
    argv = [sys.executable, "-m", "ipmasq_agent", "diff", "--config", str(document)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ})
    assert "\x1b" not in done.stdout


# What kube-proxy has, under a name that is nobody's.
SOMEBODY_S = """*nat
:PORTAL - [0:0]
-A POSTROUTING -m comment --comment "portal rules" -j PORTAL
-A PORTAL -m mark ! --mark 0x4000/0x4000 -j RETURN
-A PORTAL -j MASQUERADE
COMMIT
"""
UPSTREAM_S = """*nat
:IP-MASQ-AGENT - [0:0]
-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL \
destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL \
-j IP-MASQ-AGENT
-A IP-MASQ-AGENT -d 169.254.0.0/16 -m comment --comment "ip-masq-agent: local traffic is not \
subject to MASQUERADE" -m addrtype ! --dst-type LOCAL -j RETURN
-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE \
(must be last in chain)" -m addrtype ! --dst-type LOCAL -j MASQUERADE
COMMIT
""".replace("\\\n", "")


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy", "ipset"])
def test_a_chain_of_somebody_else_is_left_alone_unless_it_is_adopted(
    verb: Verb, in_ns: Namespace, document: Path, backend: str
) -> None:
    variant: oracle.Variant = "legacy" if "legacy" in backend else "nft"
    in_ns.run([f"iptables-{variant}-restore", "--noflush"], stdin=SOMEBODY_S)
    before = oracle.snapshot()
    chosen = ("--masq-chain=PORTAL", f"--backend={backend}")
    for words in (("apply", f"--config={document}"), ("cleanup",)):
        status, _, said = verb(*words, *chosen)
        assert status == 2
        assert "PORTAL (ipv4) is not ours" in said
        assert "--adopt" in said
        assert oracle.snapshot() == before
    assert verb("cleanup", *chosen, "--adopt")[0] == 0
    table = oracle.read_table(variant, "ipv4")
    assert "PORTAL" not in table
    assert table["POSTROUTING"].rules == ()


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_cleanup_removes_what_upstream_s_agent_left(
    verb: Verb, in_ns: Namespace, variant: oracle.Variant
) -> None:
    in_ns.run([f"iptables-{variant}-restore", "--noflush"], stdin=UPSTREAM_S)
    status, said, _ = verb("cleanup", "--masq-chain=IP-MASQ-AGENT")
    assert (status, said) == (0, f"iptables-{variant} ipv4: removed 3 lines of ours\n")
    table = oracle.read_table(variant, "ipv4")
    assert "IP-MASQ-AGENT" not in table
    assert table["POSTROUTING"].rules == ()


def test_a_name_of_kube_proxy_is_refused_by_every_verb(
    verb: Verb, in_ns: Namespace, document: Path
) -> None:
    text = SOMEBODY_S.replace("PORTAL", "KUBE-POSTROUTING")
    in_ns.run(["iptables-nft-restore", "--noflush"], stdin=text)
    before = oracle.snapshot()
    for name in ("run", "apply", "diff", "status", "list", "cleanup"):
        status, _, said = verb(name, "--masq-chain=KUBE-POSTROUTING")
        assert status == 2
        assert "a name of kube-proxy or kubelet" in said
    assert oracle.snapshot() == before


QUESTIONS = ("list", "diff", "status", "explain 8.8.8.8", "ports", "doctor")


@pytest.mark.parametrize("words", QUESTIONS)
def test_a_question_whose_answer_finds_no_room_ends_with_one_line(
    verb: Verb, document: Path, node: Namespace, words: str
) -> None:
    verb("apply", "--config", str(document))
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "ipmasq_agent", *words.split()]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True)
    name = words.split()[0]
    said = [line for line in done.stderr.splitlines() if not line.startswith(("note", "warning"))]
    expected = [f"error: {name} cannot write its output: No space left on device"]
    assert (done.returncode, said) == (2, expected)


@pytest.mark.parametrize("words", ["list", "diff", "status"])
def test_ctrl_c_while_a_question_waits_for_a_program_is_one_line(
    verb: Verb, document: Path, node: Namespace, tmp_path: Path, words: str
) -> None:
    flags = ("--backend=iptables-nft", f"--config={document}")
    verb("apply", *flags)
    waits = tmp_path / "programs"
    waits.mkdir()
    program = waits / "iptables-nft"
    program.write_text(f"#!/bin/sh\ntouch {waits}/begun\nexec sleep 1000\n")
    program.chmod(0o755)
    argv = [*HEARING, sys.executable, "-m", "ipmasq_agent", words, flags[0]]
    argv += [] if words == "list" else [flags[1]]
    env = {**os.environ, "PATH": f"{waits}:{os.environ['PATH']}"}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        wait_until((waits / "begun").exists, "the program")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")

"""What every backend promises, the one in memory too: the kernel holds what was planned."""

from __future__ import annotations

import pytest

from ipmasq_agent.planes.iptables.plan import EDITED_IN_PLACE
from ipmasq_agent.planes.rules.table import POSTROUTING
from ipmasq_agent.policy.decisions import Verdict
from tests.contract.policies import MANY, PORTS, policy, walk
from tests.contract.subjects import CHAIN, Subject

LOCAL = "-m addrtype ! --dst-type LOCAL"
# By its comment the chain is ours, whatever becomes of it and of the jumps to it.
OURS = '-m comment --comment "ipmasq-agent: everything else is masqueraded" -j MASQUERADE'
# What others have in POSTROUTING, in the words that iptables-save prints them in.
THEIRS = ("-p tcp -m mark --mark 0x1 -j RETURN", "-p udp -m mark --mark 0x2 -j RETURN")


def hook(*rules: str) -> str:
    """Return a table whose POSTROUTING holds ``rules``, and which has our chain."""
    lines = [f":{POSTROUTING} ACCEPT [0:0]", f":{CHAIN} - [0:0]"]
    lines += [f"-A {POSTROUTING} {rule}" for rule in rules]
    return "\n".join(["*nat", *lines, f"-A {CHAIN} {OURS}", "COMMIT\n"])


def others(subject: Subject) -> tuple[str, ...]:
    rules = (rule.removeprefix(f"-A {POSTROUTING} ") for rule in subject.rules(POSTROUTING))
    return tuple("ours" if rule.endswith(f"-j {CHAIN}") else rule for rule in rules)


@pytest.mark.parametrize("ports", PORTS)
def test_what_was_planned_is_what_is_read_and_nothing_is_left_to_do(
    subject: Subject, ports: str
) -> None:
    wanted = policy(subject.family, [1, 2, 3], ports=ports)
    change = subject.write(wanted)
    assert change
    assert change.create
    assert len(change.jumps) == 1
    table = subject.backend.read(subject.family)
    assert table.rules(CHAIN) == subject.backend.dialect.compile(wanted).rules
    assert len(subject.rules()) == len(table.rules(CHAIN))
    assert not subject.planned(wanted)
    assert not subject.write(wanted)


@pytest.mark.parametrize("default", [Verdict.MASQUERADE, Verdict.NON_MASQUERADE])
@pytest.mark.parametrize("local", [False, True])
def test_the_kernel_is_understood_as_the_policy_that_was_written(
    subject: Subject, default: Verdict, local: bool
) -> None:
    wanted = policy(subject.family, [1, 2, 9], default=default, ports="1024-29999", local=local)
    subject.write(wanted)
    assert subject.backend.dialect.interpret(subject.backend.read(subject.family)).policy == wanted


def test_a_policy_of_no_rule_at_all_is_an_empty_chain(subject: Subject) -> None:
    wanted = policy(subject.family, default=Verdict.NON_MASQUERADE)
    subject.write(wanted)
    assert subject.rules() == []
    assert others(subject) == ("ours",)
    assert not subject.planned(wanted)


def test_the_jump_comes_after_the_rules_of_others_and_stays_when_more_come(
    subject: Subject,
) -> None:
    subject.load(hook(*THEIRS))
    wanted = policy(subject.family, [1])
    subject.write(wanted)
    assert others(subject) == (*THEIRS, "ours")
    ours = subject.rules(POSTROUTING)[-1].removeprefix(f"-A {POSTROUTING} ")
    subject.load(hook(THEIRS[0], ours, THEIRS[1]))
    subject.write(wanted)
    assert others(subject) == (THEIRS[0], "ours", THEIRS[1])


def test_the_jump_comes_first_where_that_is_asked_and_is_moved_there_again(
    subject: Subject,
) -> None:
    subject.place(jump_first=True)
    subject.load(hook(*THEIRS))
    wanted = policy(subject.family, [1])
    subject.write(wanted)
    assert others(subject) == ("ours", *THEIRS)
    ours = subject.rules(POSTROUTING)[0].removeprefix(f"-A {POSTROUTING} ")
    subject.load(hook(THEIRS[0], ours, THEIRS[1]))
    change = subject.write(wanted)
    assert len(change.jumps_removed) == 1
    assert others(subject) == ("ours", *THEIRS)


@pytest.mark.parametrize(
    "jumps",
    [
        pytest.param((f"{LOCAL} -j {CHAIN}",) * 2, id="doubled"),
        pytest.param((f"{LOCAL} -j {CHAIN}",) * 5, id="many times"),
        pytest.param((f"-j {CHAIN}",), id="without its match"),
        pytest.param((f"-p tcp {LOCAL} -j {CHAIN}",), id="with one match more"),
        pytest.param((f"-j {CHAIN}", f"{LOCAL} -j {CHAIN}"), id="right and wrong"),
        pytest.param((f"-g {CHAIN}",), id="a goto"),
    ],
)
def test_any_other_jumps_to_our_chain_become_the_one_that_is_meant(
    subject: Subject, jumps: tuple[str, ...]
) -> None:
    subject.load(hook(THEIRS[0], *jumps, THEIRS[1], *jumps))
    wanted = policy(subject.family, [1, 2])
    subject.write(wanted)
    assert others(subject) == (*THEIRS, "ours")
    assert LOCAL in subject.rules(POSTROUTING)[-1]
    assert not subject.planned(wanted)


def test_a_chain_that_somebody_emptied_or_added_to_is_as_it_was_again(subject: Subject) -> None:
    wanted = policy(subject.family, [1, 2, 3])
    subject.write(wanted)
    before = subject.rules(), others(subject)
    table = hook(f"{LOCAL} -j {CHAIN}")
    for rules in ([], [f"-A {CHAIN} -p tcp -j RETURN", *before[0], f"-A {CHAIN} -j ACCEPT"]):
        subject.load(table.replace("COMMIT", "\n".join([*rules, "COMMIT"])))
        assert subject.write(wanted)
        assert (subject.rules(), others(subject)) == before


def test_nothing_of_ours_is_left_after_cleanup(subject: Subject) -> None:
    table = hook(*THEIRS).replace(CHAIN, "THEIRS")
    subject.load(table.replace("POSTROUTING ACCEPT", "POSTROUTING DROP"))
    before = subject.shown()
    subject.write(policy(subject.family, range(5), ports=PORTS[2]))
    assert subject.shown() != before
    assert subject.write(None)
    assert subject.shown() == before
    assert not subject.write(None)


def test_cleanup_of_a_chain_without_a_jump_and_of_a_jump_alone(subject: Subject) -> None:
    subject.load(hook(*THEIRS))
    subject.write(None)
    assert not any(CHAIN in line for line in subject.shown())
    subject.load(hook(f"-j {CHAIN}", *THEIRS, f"-j {CHAIN}"))
    subject.write(None)
    assert not any(CHAIN in line for line in subject.shown())
    assert others(subject) == THEIRS


@pytest.mark.parametrize(("jump_first", "seed"), [(False, 2), (True, 5)])
def test_a_walk_through_random_policies_is_right_at_every_step(
    subject: Subject, jump_first: bool, seed: int
) -> None:
    subject.place(jump_first=jump_first)
    subject.load(hook(*THEIRS))
    written_anew = edited = 0
    for number, wanted in enumerate(walk(subject.family, seed, steps=30)):
        change = subject.write(wanted)
        written_anew += change.rewrite is not None
        edited += bool(change) and change.rewrite is None
        table = subject.backend.read(subject.family)
        assert table.rules(CHAIN) == subject.backend.dialect.compile(wanted).rules, f"step {number}"
        assert subject.backend.dialect.interpret(table).policy == wanted, f"step {number}"
        assert len(subject.rules()) == len(table.rules(CHAIN)), f"step {number}"
        ours = ("ours",) * len(subject.backend.dialect.compile(wanted).jumps)
        assert others(subject) == ((*ours, *THEIRS) if jump_first else (*THEIRS, *ours))
    # Both ways of writing were walked, or the test shows less than it says.
    assert written_anew >= 5
    assert edited >= 10


def test_a_change_larger_than_is_edited_in_place_writes_the_chain_anew(subject: Subject) -> None:
    subject.write(policy(subject.family, range(MANY)))
    wanted = policy(subject.family, range(1000, 1000 + MANY))
    change = subject.write(wanted)
    assert change.rewrite is not None
    assert len(change.insert) > EDITED_IN_PLACE
    assert len(subject.rules()) == MANY + 1
    assert not subject.planned(wanted)


def test_a_thousand_rules_and_one_of_them_changed(subject: Subject) -> None:
    numbers = list(range(1000))
    subject.write(policy(subject.family, numbers))
    assert len(subject.rules()) == 1001
    numbers[500] = 5000
    wanted = policy(subject.family, numbers)
    change = subject.write(wanted)
    assert change.rewrite is None
    assert (change.keep, len(change.remove), len(change.insert)) == (500, 1, 1)
    assert not subject.planned(wanted)
    assert subject.backend.dialect.interpret(subject.backend.read(subject.family)).policy == wanted

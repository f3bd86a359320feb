"""What planes of iptables promise beside, the one in memory too: jumps, and edits by position."""

from __future__ import annotations

import pytest

from ipmasq_agent.planes.iptables.plan import EDITED_IN_PLACE
from ipmasq_agent.planes.rules.table import POSTROUTING
from ipmasq_agent.policy.decisions import Verdict
from tests.contract.policies import MANY, policy, walk
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


def others(chained: Subject) -> tuple[str, ...]:
    rules = (rule.removeprefix(f"-A {POSTROUTING} ") for rule in chained.rules(POSTROUTING))
    return tuple("ours" if rule.endswith(f"-j {CHAIN}") else rule for rule in rules)


def test_a_policy_of_no_rule_at_all_is_an_empty_chain(chained: Subject) -> None:
    wanted = policy(chained.family, default=Verdict.NON_MASQUERADE)
    chained.write(wanted)
    assert chained.rules() == []
    assert others(chained) == ("ours",)
    assert not chained.planned(wanted)


def test_the_jump_comes_after_the_rules_of_others_and_stays_when_more_come(
    chained: Subject,
) -> None:
    chained.load(hook(*THEIRS))
    wanted = policy(chained.family, [1])
    chained.write(wanted)
    assert others(chained) == (*THEIRS, "ours")
    ours = chained.rules(POSTROUTING)[-1].removeprefix(f"-A {POSTROUTING} ")
    chained.load(hook(THEIRS[0], ours, THEIRS[1]))
    chained.write(wanted)
    assert others(chained) == (THEIRS[0], "ours", THEIRS[1])


def test_the_jump_comes_first_where_that_is_asked_and_is_moved_there_again(
    chained: Subject,
) -> None:
    chained.place(jump_first=True)
    chained.load(hook(*THEIRS))
    wanted = policy(chained.family, [1])
    chained.write(wanted)
    assert others(chained) == ("ours", *THEIRS)
    ours = chained.rules(POSTROUTING)[0].removeprefix(f"-A {POSTROUTING} ")
    chained.load(hook(THEIRS[0], ours, THEIRS[1]))
    change = chained.write(wanted)
    assert len(change.jumps_removed) == 1
    assert others(chained) == ("ours", *THEIRS)


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
    chained: Subject, jumps: tuple[str, ...]
) -> None:
    chained.load(hook(THEIRS[0], *jumps, THEIRS[1], *jumps))
    wanted = policy(chained.family, [1, 2])
    chained.write(wanted)
    assert others(chained) == (*THEIRS, "ours")
    assert LOCAL in chained.rules(POSTROUTING)[-1]
    assert not chained.planned(wanted)


def test_a_chain_that_somebody_emptied_or_added_to_is_as_it_was_again(chained: Subject) -> None:
    wanted = policy(chained.family, [1, 2, 3])
    chained.write(wanted)
    before = chained.rules(), others(chained)
    table = hook(f"{LOCAL} -j {CHAIN}")
    for rules in ([], [f"-A {CHAIN} -p tcp -j RETURN", *before[0], f"-A {CHAIN} -j ACCEPT"]):
        chained.load(table.replace("COMMIT", "\n".join([*rules, "COMMIT"])))
        assert chained.write(wanted)
        assert (chained.rules(), others(chained)) == before


def test_cleanup_of_a_chain_without_a_jump_and_of_a_jump_alone(chained: Subject) -> None:
    chained.load(hook(*THEIRS))
    chained.write(None)
    assert not any(CHAIN in line for line in chained.shown())
    chained.load(hook(f"-j {CHAIN}", *THEIRS, f"-j {CHAIN}"))
    chained.write(None)
    assert not any(CHAIN in line for line in chained.shown())
    assert others(chained) == THEIRS


@pytest.mark.parametrize(("jump_first", "seed"), [(False, 2), (True, 5)])
def test_a_walk_through_random_policies_is_right_at_every_step(
    chained: Subject, jump_first: bool, seed: int
) -> None:
    chained.place(jump_first=jump_first)
    chained.load(hook(*THEIRS))
    written_anew = edited = 0
    for number, wanted in enumerate(walk(chained.family, seed, steps=30)):
        change = chained.write(wanted)
        written_anew += change.rewrite is not None
        edited += bool(change) and change.rewrite is None
        table = chained.backend.read(chained.family)
        assert table.rules(CHAIN) == chained.backend.dialect.compile(wanted).rules, f"step {number}"
        assert chained.backend.dialect.interpret(table).policy == wanted, f"step {number}"
        assert len(chained.rules()) == len(table.rules(CHAIN)), f"step {number}"
        ours = ("ours",) * len(chained.backend.dialect.compile(wanted).jumps)
        assert others(chained) == ((*ours, *THEIRS) if jump_first else (*THEIRS, *ours))
    # Both ways of writing were walked, or the test shows less than it says.
    assert written_anew >= 5
    assert edited >= 10


def test_a_change_larger_than_is_edited_in_place_writes_the_chain_anew(chained: Subject) -> None:
    chained.write(policy(chained.family, range(MANY)))
    wanted = policy(chained.family, range(1000, 1000 + MANY))
    change = chained.write(wanted)
    assert change.rewrite is not None
    assert len(change.insert) > EDITED_IN_PLACE
    assert len(chained.rules()) == MANY + 1
    assert not chained.planned(wanted)


def test_a_thousand_rules_and_one_of_them_changed(chained: Subject) -> None:
    numbers = list(range(1000))
    chained.write(policy(chained.family, numbers))
    assert len(chained.rules()) == 1001
    numbers[500] = 5000
    wanted = policy(chained.family, numbers)
    change = chained.write(wanted)
    assert change.rewrite is None
    assert (change.keep, len(change.remove), len(change.insert)) == (500, 1, 1)
    assert not chained.planned(wanted)
    assert chained.backend.dialect.interpret(chained.backend.read(chained.family)).policy == wanted

"""The chain that asks a set, over both iptables and in both families, on the real kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.errors import CommandFailed, KernelReadError
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.iptables.plane import IptablesPlane
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.prefixset import IN_PLACE
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import FamilyPolicy
from tests.contract.policies import entry, policy, prefix
from tests.netns import Namespace

pytestmark = pytest.mark.kernel
VARIANTS = ("nft", "legacy")


class Subject:
    """A backend of a family in a namespace that the calling thread has entered."""

    def __init__(self, variant: str, family: Family, namespace: Namespace) -> None:
        self.variant = variant
        self.family = family
        self.namespace = namespace
        backend = detect.make(f"ipset-{variant}", Placement())
        assert isinstance(backend, IptablesPlane)
        self.backend = backend
        stem = "IP-MASQ" if variant == "nft" else "IP-MASQ-legacy"
        self.set = f"{stem}-{'4' if family is Family.IPV4 else '6'}"

    def write(self, wanted: FamilyPolicy | None) -> bool:
        change = reconcile_family(self.backend, self.family, wanted)
        assert change.counts == (len(change.added), len(change.removed))
        return bool(change)

    def ipset(self, *words: str) -> str:
        return self.namespace.run(["ipset", *words]).stdout

    def sets(self) -> list[str]:
        return self.ipset("list", "-n").split()

    def elements(self) -> list[str]:
        """Return what the set holds, as ``ipset save`` prints it, sorted."""
        lines = self.ipset("save", self.set).splitlines()
        return sorted(line.removeprefix(f"add {self.set} ") for line in lines[1:])

    def rules(self) -> list[str]:
        saver = "iptables" if self.family is Family.IPV4 else "ip6tables"
        saved = self.namespace.run([f"{saver}-{self.variant}-save", "-t", "nat"]).stdout
        return [line for line in saved.splitlines() if line.startswith("-A")]

    def decided(self) -> FamilyPolicy:
        return self.backend.dialect.interpret(self.backend.read(self.family)).policy


@pytest.fixture(
    params=[(v, f) for v in VARIANTS for f in Family], ids=lambda p: f"{p[0]}-{p[1].value}"
)
def subject(request: pytest.FixtureRequest, in_ns: Namespace) -> Iterator[Subject]:
    variant, family = request.param
    made = Subject(variant, family, in_ns)
    try:
        yield made
    finally:
        made.backend.close()


def test_one_rule_asks_the_set_and_the_rest_is_masqueraded(subject: Subject) -> None:
    assert subject.write(policy(subject.family, [1, 2]))
    assert subject.elements() == sorted(str(prefix(subject.family, n)) for n in (1, 2))
    chain = [rule for rule in subject.rules() if rule.startswith("-A IP-MASQ")]
    assert chain[0] == f"-A IP-MASQ -m set --match-set {subject.set} dst -j RETURN"
    assert chain[1].endswith("-j MASQUERADE --random-fully")
    assert len(chain) == 2
    assert not subject.write(policy(subject.family, [1, 2]))


def test_everything_can_be_kept_and_a_prefix_within_it_masqueraded(subject: Subject) -> None:
    family = subject.family
    whole = entry_of_prefix(Prefix(family, 0, 0), Verdict.NON_MASQUERADE, Stated("all"))
    subject.write(FamilyPolicy(DecisionMap(family, [whole])))
    assert len(subject.elements()) == 2
    assert not subject.decided().masquerades
    wanted = policy(family, [entry(family, 5, Verdict.MASQUERADE), whole])
    subject.write(wanted)
    assert f"{prefix(family, 5)} nomatch" in subject.elements()
    assert subject.decided() == wanted


def test_a_small_change_touches_nothing_else(subject: Subject) -> None:
    subject.write(policy(subject.family, range(50)))
    rules = subject.rules()
    held = subject.ipset("save", subject.set).splitlines()[0]
    subject.write(policy(subject.family, range(51)))
    # The same set: had it been made anew, its initval would be another.
    assert subject.ipset("save", subject.set).splitlines()[0] == held
    assert subject.rules() == rules
    assert len(subject.elements()) == 51


def test_a_large_change_is_filled_apart_and_swapped_in(subject: Subject) -> None:
    subject.write(policy(subject.family, range(50)))
    held = subject.ipset("save", subject.set).splitlines()[0]
    subject.write(policy(subject.family, range(1000, 1001 + IN_PLACE)))
    assert subject.ipset("save", subject.set).splitlines()[0] != held
    assert len(subject.elements()) == 1 + IN_PLACE
    assert subject.sets() == [subject.set]


def test_what_somebody_does_to_the_set_or_the_chain_is_healed(subject: Subject) -> None:
    wanted = policy(subject.family, range(20))
    subject.write(wanted)
    before = subject.elements(), subject.rules()
    iptables = "iptables" if subject.family is Family.IPV4 else "ip6tables"
    for deed in (
        ["ipset", "flush", subject.set],
        ["ipset", "del", subject.set, str(prefix(subject.family, 7))],
        ["ipset", "add", subject.set, str(prefix(subject.family, 700))],
        ["ipset", "add", subject.set, str(prefix(subject.family, 7)), "nomatch", "-exist"],
        [f"{iptables}-{subject.variant}", "-t", "nat", "-F", "IP-MASQ"],
    ):
        subject.namespace.run(deed)
        assert subject.write(wanted), deed
        assert (subject.elements(), subject.rules()) == before, deed


def test_one_address_is_asked_about_without_reading_the_set(subject: Subject) -> None:
    family = subject.family
    within = entry(family, 9, Verdict.MASQUERADE)
    broad = Prefix(family, prefix(family, 0).first, 8)
    kept = entry_of_prefix(broad, Verdict.NON_MASQUERADE, Stated("broad"))
    subject.write(policy(family, [within, kept]))
    for address, verdict in (
        (prefix(family, 9).first + 1, Verdict.MASQUERADE),
        (prefix(family, 8).first + 1, Verdict.NON_MASQUERADE),
        (1, Verdict.MASQUERADE),
    ):
        state = subject.backend.read_at(family, address)
        assert (
            subject.backend.dialect.interpret(state).policy.decisions.decide(address).verdict
            is verdict
        )
        assert len(state.sets[subject.set].elements) <= 1


def test_leftovers_of_a_killed_agent_are_removed_and_sets_of_others_stay(subject: Subject) -> None:
    kind = ["hash:net", "family", "inet" if subject.family is Family.IPV4 else "inet6"]
    subject.ipset("create", f"{subject.set}-new", *kind)
    subject.ipset("create", "theirs", *kind)
    subject.ipset("add", "theirs", str(prefix(subject.family, 3)))
    subject.write(policy(subject.family, [1]))
    assert set(subject.sets()) == {subject.set, "theirs"}
    subject.write(policy(subject.family, range(IN_PLACE + 2)))
    assert subject.write(None)
    assert subject.sets() == ["theirs"]
    assert str(prefix(subject.family, 3)) in subject.ipset("save", "theirs")
    assert not [rule for rule in subject.rules() if "IP-MASQ" in rule]
    assert not subject.write(None)


def test_a_set_of_our_name_and_another_type_is_an_error_and_left_alone(subject: Subject) -> None:
    subject.ipset("create", subject.set, "hash:ip")
    before = subject.ipset("save")
    with pytest.raises(KernelReadError, match="hash:ip, not our hash:net") as caught:
        subject.write(policy(subject.family, [1]))
    assert "--masq-chain" in str(caught.value)
    assert subject.ipset("save") == before
    assert not [rule for rule in subject.rules() if "IP-MASQ" in rule]


def test_a_set_of_our_name_and_another_type_does_not_stop_a_chain_that_needs_none(
    subject: Subject,
) -> None:
    for name in (subject.set, f"{subject.set}-new"):
        subject.ipset("create", name, "hash:ip")
    before = subject.ipset("save")
    plain = detect.make(f"iptables-{subject.variant}", Placement())
    try:
        for wanted in (policy(subject.family, [1]), policy(subject.family, [1, 2]), None):
            assert reconcile_family(plain, subject.family, wanted)
            held = plain.dialect.interpret(plain.read_at(subject.family, 0)).policy
            assert held == wanted if wanted else not held.masquerades
    finally:
        plain.close()
    assert subject.ipset("save") == before
    # The name under which a set is filled may be another's as well.
    subject.ipset("destroy", subject.set)
    with pytest.raises(KernelReadError, match="hash:ip, not our hash:net"):
        subject.write(policy(subject.family, [1]))
    assert subject.sets() == [f"{subject.set}-new"]


def test_a_set_that_cannot_be_filled_leaves_everything_as_it_was(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = policy(subject.family, range(10))
    subject.write(wanted)
    before = subject.elements(), subject.rules(), subject.sets()
    monkeypatch.setattr("ipmasq_agent.planes.prefixset._LEAST_ELEMENTS", 1)
    larger = subject.backend.dialect.compile(policy(subject.family, range(IN_PLACE * 2)))
    assert larger.address_set is not None
    object.__setattr__(larger.address_set, "capacity", 3)
    actual = subject.backend.read(subject.family)
    with subject.backend.session(subject.family), pytest.raises(CommandFailed, match="full"):
        subject.backend.apply(subject.family, subject.backend.dialect.plan(actual, larger))
    assert (subject.elements(), subject.rules(), subject.sets()) == before


def test_the_two_forms_of_a_place_become_each_other(subject: Subject) -> None:
    wanted = policy(subject.family, range(5), ports="1024-29999")
    subject.write(wanted)
    plain = detect.make(f"iptables-{subject.variant}", Placement())
    try:
        assert reconcile_family(plain, subject.family, wanted)
        assert subject.sets() == []
        assert plain.dialect.interpret(plain.read(subject.family)).policy == wanted
        assert subject.write(wanted)
        assert subject.decided() == wanted
        assert subject.sets() == [subject.set]
    finally:
        plain.close()


def test_long_chain_names_have_sets_of_their_own(subject: Subject) -> None:
    names = ["A" * 28, "A" * 27 + "B"]
    for name in names:
        backend = detect.make(f"ipset-{subject.variant}", Placement(name))
        try:
            reconcile_family(backend, subject.family, policy(subject.family, range(IN_PLACE + 9)))
            reconcile_family(backend, subject.family, policy(subject.family, range(5)))
        finally:
            backend.close()
    assert len(set(subject.sets())) == 2

"""Our own table of nf_tables on the real kernel, with nft as the second reader."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.errors import HostError, KernelReadError
from ipmasq_agent.netlink import nft_batch
from ipmasq_agent.netlink.nft_objects import SetInfo
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.nftables import compile as dialect
from ipmasq_agent.planes.nftables import read as reading
from ipmasq_agent.planes.nftables.plan import TableChange
from ipmasq_agent.planes.nftables.plane import NftablesPlane
from ipmasq_agent.planes.nftables.state import NftSet, SetKind
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict
from ipmasq_agent.policy.model import FamilyPolicy
from tests import oracle
from tests.contract.policies import PORTS, policy, prefix, walk
from tests.netns import Namespace

pytestmark = pytest.mark.kernel

NFT = {Family.IPV4: "ip", Family.IPV6: "ip6"}
EVERYTHING = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}


class Subject:
    """The backend of one family, in a namespace that the calling thread has entered."""

    def __init__(self, family: Family, namespace: Namespace) -> None:
        self.family = family
        self.namespace = namespace
        self.backend = NftablesPlane(Placement())

    def write(self, wanted: FamilyPolicy | None) -> TableChange:
        change: Any = reconcile_family(self.backend, self.family, wanted)
        assert isinstance(change, TableChange)
        return change

    def afresh(self) -> Any:
        """Return the table as an agent reads it that knows nothing yet."""
        return NftablesPlane(Placement()).read(self.family)

    def nft(self, command: str) -> None:
        """Do as another program would; ``TABLE`` stands for our table."""
        words = command.replace("TABLE", f"{NFT[self.family]} ip-masq")
        self.namespace.run(["nft", words.replace("ADDR", NFT[self.family])])

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """Return what nft shows of our table."""
        where = (NFT[self.family], "ip-masq")
        found = oracle.nft_objects(kind, self.namespace.name)
        return [item for item in found if (item["family"], item["table"]) == where]

    def kept(self) -> list[str]:
        """Return the elements of ``keep`` as nft shows them."""
        names = ("keep", "keep-2")
        (keep,) = (item for item in self.objects("set") if item["name"] in names)
        return [shown(element) for element in keep.get("elem", [])]

    def text(self) -> list[str]:
        """Return the rules as nft prints them, without what they count."""
        listed = self.namespace.run(["nft", "list", "table", NFT[self.family], "ip-masq"]).stdout
        body = re.sub(r"counter packets \d+ bytes \d+ ", "", listed.partition("policy accept;")[2])
        return [line.strip() for line in body.splitlines() if line.strip(" \t}")]


def uncounted(namespace: Namespace) -> str:
    """Return all that is there, but that some rules count."""
    return repr(oracle.snapshot(namespace.name)).replace("{'counter': {}}, ", "")


def shown(element: Any) -> str:
    if isinstance(element, str):
        return element
    if "range" in element:
        return "-".join(element["range"])
    return f"{element['prefix']['addr']}/{element['prefix']['len']}"


@pytest.fixture(params=list(Family), ids=lambda f: f.value)
def subject(request: pytest.FixtureRequest, in_ns: Namespace) -> Subject:
    return Subject(request.param, in_ns)


@pytest.mark.parametrize("ports", PORTS)
def test_what_was_planned_is_what_nft_shows_and_nothing_is_left_to_do(
    subject: Subject, ports: str
) -> None:
    wanted = policy(
        subject.family, [1, 3], ports=ports, sources=[5, 7], devices=["eth0"], fixed=[8, 9]
    )
    assert subject.write(wanted)
    table = subject.backend.dialect.compile(wanted)
    assert subject.kept() == [str(prefix(subject.family, n)) for n in (1, 3)]
    start = f"add rule {table.path} postrouting "
    rules = [line.removeprefix(start) for line in table.lines() if line.startswith(start)]
    assert subject.text() == rules
    (chain,) = subject.objects("chain")
    assert (chain["type"], chain["hook"], chain["prio"]) == ("nat", "postrouting", 101)
    names = {item["name"]: item for kind in ("set", "map") for item in subject.objects(kind)}
    assert names["interfaces"]["elem"] == ["eth0"]
    assert len(names["fixed"]["elem"]) == 1  # neighbours of one address
    assert subject.afresh() == table
    assert not subject.write(wanted)


def test_what_is_printed_can_be_fed_to_nft_and_makes_the_same_table(subject: Subject) -> None:
    wanted = policy(
        subject.family, [1, 3], ports=PORTS[2], sources=[5], devices=["eth0", "wg-0"], fixed=[-1]
    )
    lines = subject.write(wanted).added
    mine = uncounted(subject.namespace)
    with Namespace("nft") as other:
        other.run(["nft", "-f", "-"], stdin="\n".join(lines))
        assert uncounted(other) == mine
        with other.entered():
            assert subject.afresh() == subject.backend.dialect.compile(wanted)


def test_everything_can_be_kept_and_nothing(subject: Subject) -> None:
    everything = policy(subject.family, default=Verdict.NON_MASQUERADE)
    subject.write(everything)
    assert subject.kept() == [EVERYTHING[subject.family]]
    assert subject.afresh() == subject.backend.dialect.compile(everything)
    nothing = policy(subject.family)
    change = subject.write(nothing)
    assert (len(change.added), len(change.removed)) == (0, 1)
    assert subject.kept() == []
    last = subject.family.last_address
    kept = [Entry(last - 1, last, Verdict.NON_MASQUERADE, Stated("the last two"))]
    wanted = FamilyPolicy(DecisionMap(subject.family, kept))
    subject.write(wanted)
    assert subject.kept() == [str(ip_network((last - 1, subject.family.bits - 1)))]
    assert subject.backend.dialect.interpret(subject.afresh()).policy == wanted


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("parted", [False, True])
def test_a_walk_through_random_policies_is_right_at_every_step(
    subject: Subject, seed: int, parted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parted:
        monkeypatch.setattr(dialect, "PARTED_PAST", 3)
        monkeypatch.setattr(dialect, "_EVERY", 2)
    in_place = beside = 0
    for number, wanted in enumerate(walk(subject.family, seed, steps=125)):
        change = subject.write(wanted)
        in_place += any(edit.in_place for edit in change.sets_changed)
        beside += any(not edit.in_place for edit in change.sets_changed)
        table = subject.afresh()
        assert table == subject.backend.dialect.compile(wanted), f"step {number}"
        assert subject.backend.dialect.interpret(table).policy == wanted, f"step {number}"
        for address in (0, prefix(subject.family, number).first, subject.family.last_address):
            at = NftablesPlane(Placement()).read_at(subject.family, address)
            decided = subject.backend.dialect.interpret(at).policy.decisions.decide(address)
            assert decided.verdict is wanted.decisions.decide(address).verdict, f"step {number}"
    # Both ways of writing were walked, or the test shows less than it says.
    assert min(in_place, beside) >= 3


def test_one_range_less_or_longer_is_all_that_is_sent(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject.write(policy(subject.family, range(1, 1001, 2)))
    sent: list[list[str]] = []
    commit = nft_batch.Batch.commit

    def noting(batch: nft_batch.Batch) -> None:
        sent.append(list(batch._names))
        commit(batch)

    monkeypatch.setattr(nft_batch.Batch, "commit", noting)
    wanted = policy(subject.family, [*range(1, 500, 2), *range(503, 1001, 2)])
    assert len(subject.write(wanted).removed) == 1
    assert sent == [["delete from keep"]]
    # [a, b] becomes [a, c]. In place, packets to [a, b] would find neither for a while, so
    # another set is filled, and the rules change over to it; and the next time back.
    longer = policy(subject.family, [*range(1, 500, 2), 500, *range(503, 1001, 2)])
    assert subject.write(longer)
    assert sent[1] == ["add set keep-2", "add to keep-2"]
    assert sent[2][0] == "empty chain postrouting"
    assert sent[2][-1] == "delete set keep"
    assert len(sent) == 3
    assert subject.afresh() == subject.backend.dialect.compile(longer)
    assert subject.write(wanted)
    assert sent[3] == ["add set keep", "add to keep"]
    assert subject.afresh() == subject.backend.dialect.compile(wanted)


def test_what_a_broken_off_change_left_is_used_or_removed(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = nft_batch.Batch.commit

    def broken(batch: nft_batch.Batch) -> None:
        if not batch._names[0].startswith("add"):
            raise HostError("killed")
        commit(batch)

    short, longer = policy(subject.family, [1, 3]), policy(subject.family, [1, 2, 3])
    other = policy(subject.family, [1, 2, 3, 4])
    for then in (short, longer, other):
        subject.write(short)
        with monkeypatch.context() as patch:
            patch.setattr(nft_batch.Batch, "commit", broken)
            with pytest.raises(HostError, match="killed"):
                subject.write(longer)
        assert len(subject.objects("set")) == 2
        assert subject.backend.dialect.interpret(subject.afresh()).policy == short
        subject.write(then)
        assert len(subject.objects("set")) == 1
        assert subject.afresh() == subject.backend.dialect.compile(then)
    subject.write(None)
    with monkeypatch.context() as patch:
        patch.setattr(nft_batch.Batch, "commit", broken)
        patch.setattr("ipmasq_agent.netlink.nft_numbers.NFT_MSG_NEWCHAIN", 99)
        with pytest.raises(HostError):
            subject.write(short)
    subject.write(short)
    assert subject.afresh() == subject.backend.dialect.compile(short)


TAMPERING = [
    "delete table TABLE",
    "flush ruleset",
    "flush chain TABLE postrouting",
    "flush set TABLE keep",
    "add element TABLE keep { 192.0.2.0/24 }",
    "add rule TABLE postrouting counter accept",
    "insert rule TABLE postrouting ADDR daddr 192.0.2.1 accept",
    "insert rule TABLE postrouting accept",
    "add chain TABLE another & add rule TABLE another accept",
    "add chain TABLE empty",
    "add chain TABLE early { type nat hook postrouting priority 1; } & add rule TABLE early accept",
    "add set TABLE more { type inet_service; }",
    "add set TABLE keep2 { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }",
    "add map TABLE verdicts { type ipv4_addr : verdict; }",
    "add counter TABLE hits",
    "add chain TABLE postrouting { policy drop; }",
    "delete table TABLE & add table TABLE & "
    "add chain TABLE postrouting { type nat hook postrouting priority 50; }",
    "delete table TABLE & add table TABLE & add chain TABLE postrouting",
    "delete table TABLE & add table TABLE & add set TABLE keep { type ipv4_addr; }",
]


@pytest.mark.parametrize("command", TAMPERING)
def test_whatever_others_do_to_our_table_is_undone(subject: Subject, command: str) -> None:
    if subject.family is Family.IPV6:
        command = command.replace("192.0.2.", "2001:db8::").replace("ipv4_addr", "ipv6_addr")
        command = command.replace("2001:db8::0/24", "2001:db8::/64")
    for wanted in (
        policy(subject.family, [1, 3], sources=[5], ports=PORTS[2]),
        policy(subject.family, [1, 3]),
    ):
        subject.write(wanted)
        before = oracle.snapshot(subject.namespace.name)
        for words in command.split(" & "):
            subject.nft(words)
        assert oracle.snapshot(subject.namespace.name) != before
        assert subject.write(wanted)
        assert oracle.snapshot(subject.namespace.name) == before
        assert not subject.write(wanted)


def test_others_are_left_alone_and_cleanup_leaves_nothing(subject: Subject) -> None:
    theirs = """
        add table ip theirs
        add chain ip theirs c { type nat hook postrouting priority 100; }
        add rule ip theirs c masquerade
        add table ip6 theirs
        add set ip6 theirs keep { type ipv6_addr; flags interval; elements = { fd00::/8 }; }
        add table inet ip-masq
        add chain inet ip-masq postrouting
    """
    subject.namespace.run(["nft", "-f", "-"], stdin=theirs)
    before = oracle.snapshot(subject.namespace.name, handles=True)
    subject.write(policy(subject.family, range(5), ports=PORTS[2], fixed=[7]))
    subject.write(policy(subject.family, range(90), sources=[3]))
    assert "nftables" in detect.holders(Placement())
    assert subject.write(None)
    assert oracle.snapshot(subject.namespace.name, handles=True) == before
    assert not subject.write(None)
    assert "nftables" not in detect.holders(Placement())


def test_a_table_of_our_name_that_is_not_ours_is_never_touched(subject: Subject) -> None:
    subject.nft("add table TABLE")
    subject.nft("add chain TABLE theirs")
    before = oracle.snapshot(subject.namespace.name, handles=True)
    for wanted in (policy(subject.family), None):
        with pytest.raises(KernelReadError, match=r"not ours \(theirs\)"):
            subject.write(wanted)
    assert oracle.snapshot(subject.namespace.name, handles=True) == before
    elsewhere = NftablesPlane(Placement("IP-MASQ-AGENT"))
    reconcile_family(elsewhere, subject.family, policy(subject.family))
    names = oracle.nft_tables("ipv4" if subject.family is Family.IPV4 else "ipv6")
    assert names == {"ip-masq", "ip-masq-agent"}


def test_an_empty_table_of_our_name_becomes_ours(subject: Subject) -> None:
    subject.nft("add table TABLE")
    wanted = policy(subject.family, [1])
    subject.write(wanted)
    assert subject.afresh() == subject.backend.dialect.compile(wanted)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the sets whose elements are read, from now on."""
    names: list[str] = []
    read_set = reading.read_set

    def noting(family: Family, table: str, info: SetInfo, kind: SetKind) -> NftSet:
        names.append(info.name)
        return read_set(family, table, info, kind)

    monkeypatch.setattr(reading, "read_set", noting)
    return names


def test_a_change_of_the_document_reads_no_set_even_where_others_commit_all_the_time(
    subject: Subject, readings: list[str]
) -> None:
    subject.write(policy(subject.family, [1, 3]))
    readings.clear()
    subject.namespace.run(["nft", "add", "table", "ip", "busy"])
    for n, size in ((5, 3), (7, 3)):
        wanted = policy(subject.family, [1, 3, n])
        subject.namespace.run(["nft", "add", "chain", "ip", "busy", f"c{n}"])
        desired = subject.backend.dialect.compile(wanted)
        change = subject.backend.dialect.plan(subject.backend.recall(subject.family), desired)
        assert len(change.added) == 1
        subject.namespace.run(["nft", "add", "chain", "ip", "busy", f"d{n}"])
        subject.backend.apply(subject.family, change)
        subject.namespace.run(["nft", "add", "chain", "ip", "busy", f"e{n}"])
        assert not subject.backend.dialect.plan(subject.backend.recall(subject.family), desired)
        assert len(subject.kept()) == size
    assert readings == []
    # A resync reads them, for what the signs do not show; once, while nobody commits.
    assert subject.backend.read(subject.family) == desired
    assert subject.backend.read(subject.family) == desired
    assert readings == ["keep"]


def test_a_set_of_another_size_is_read_again(subject: Subject, readings: list[str]) -> None:
    wanted = policy(subject.family, [1, 3])
    subject.write(wanted)
    subject.nft(f"delete element TABLE keep {{ {prefix(subject.family, 3)} }}")
    change = subject.backend.dialect.plan(
        subject.backend.recall(subject.family), subject.backend.dialect.compile(wanted)
    )
    assert readings == ["keep"]
    assert len(change.added) == 1


def test_a_set_that_was_made_again_is_read_again(subject: Subject, readings: list[str]) -> None:
    wanted = policy(subject.family, [1])
    lines = subject.write(wanted).added
    subject.backend.read(subject.family)  # so that the handle of the set is known
    readings.clear()
    one, other = (str(prefix(subject.family, n)) for n in (1, 2))
    subject.nft("delete table TABLE")
    # The sets before the chain, as we write them: then the handles are the same ones too.
    lines.sort(key=lambda line: ["table", "set", "element", "chain", "rule"].index(line.split()[1]))
    text = "\n".join(lines).replace(one, other)
    subject.namespace.run(["nft", "-f", "-"], stdin=text)
    table = subject.backend.recall(subject.family)
    assert readings == ["keep"]
    assert subject.backend.dialect.interpret(table).policy == policy(subject.family, [2])


def test_what_was_planned_on_a_wrong_belief_is_refused_and_planned_anew(
    subject: Subject,
) -> None:
    subject.write(policy(subject.family, [1, 3]))
    wanted = policy(subject.family, [1, 5])
    change = subject.backend.dialect.plan(
        subject.backend.read(subject.family), subject.backend.dialect.compile(wanted)
    )
    # One element for another: no sign tells, but the kernel does not find what should go.
    subject.nft(f"delete element TABLE keep {{ {prefix(subject.family, 3)} }}")
    subject.nft(f"add element TABLE keep {{ {prefix(subject.family, 7)} }}")
    subject.backend.apply(subject.family, change)
    assert subject.afresh() == subject.backend.dialect.compile(wanted)


def test_a_resync_finds_what_no_sign_shows(subject: Subject) -> None:
    wanted = policy(subject.family, [1, 3])
    subject.write(wanted)
    subject.nft(f"delete element TABLE keep {{ {prefix(subject.family, 3)} }}")
    subject.nft(f"add element TABLE keep {{ {prefix(subject.family, 7)} }}")
    assert len(subject.write(wanted).added) == 1
    assert subject.afresh() == subject.backend.dialect.compile(wanted)


def test_a_refusal_of_the_kernel_is_readable_and_changes_nothing(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject.write(policy(subject.family, [1]))
    before = oracle.snapshot(subject.namespace.name)
    desired = subject.backend.dialect.compile(policy(subject.family, [1, 3], ports=PORTS[1]))
    change = subject.backend.dialect.plan(subject.backend.read(subject.family), desired)
    monkeypatch.setattr("ipmasq_agent.netlink.nft_numbers.NFT_MSG_NEWRULE", 21)
    with pytest.raises(HostError, match="add rule to postrouting"):
        subject.backend.apply(subject.family, change)
    assert oracle.snapshot(subject.namespace.name) == before


def test_without_the_capability_the_error_says_so(in_ns: Namespace) -> None:
    script = (
        "from ipmasq_agent.planes.nftables.plane import NftablesPlane\n"
        "from ipmasq_agent.planes.placement import Placement\n"
        "from ipmasq_agent.policy.addresses import Family\n"
        "NftablesPlane(Placement()).read(Family.IPV4)\n"
    )
    done = in_ns.run(["setpriv", "--bounding-set=-net_admin", "python", "-c", script], check=False)
    assert done.returncode == 1
    assert "NET_ADMIN" in done.stderr


def test_many_ranges_are_read_by_nft_as_they_were_meant(subject: Subject) -> None:
    step = 1 << (subject.family.bits - 22)
    base = 1 << subject.family.bits - 2
    kept = [
        Entry(base + n * step, base + n * step + n % 7, Verdict.NON_MASQUERADE, Stated("e"))
        for n in range(9000)
    ]
    wanted = FamilyPolicy(DecisionMap(subject.family, kept))
    subject.write(wanted)
    sets = subject.objects("set")
    assert len(sets) > 2
    found = [ends(shown(element)) for one in sets for element in one.get("elem", [])]
    assert sorted(found) == [(entry.first, entry.last) for entry in kept]
    for one in sets:
        begin = int(one["name"].removeprefix("keep-"), 16)
        assert all(ends(shown(element))[0] >= begin for element in one["elem"])
    assert subject.afresh() == subject.backend.dialect.compile(wanted)
    for entry in (kept[0], kept[4500], kept[-1]):
        for address in (entry.first - 1, entry.first, entry.last, entry.last + 1):
            at = subject.backend.read_at(subject.family, address)
            assert sum(len(held) for name, held in at.sets.items() if name != "parts") <= 1
            decided = subject.backend.dialect.interpret(at).policy.decisions.decide(address)
            assert decided.verdict is wanted.decisions.decide(address).verdict
    few = policy(subject.family, [1])
    subject.write(few)
    assert subject.afresh() == subject.backend.dialect.compile(few)
    assert len(subject.objects("set")) == 1


def ends(text: str) -> tuple[int, int]:
    if "-" in text:
        first, _, last = text.partition("-")
        return int(ip_address(first)), int(ip_address(last))
    network = ip_network(text)
    return int(network[0]), int(network[-1])

"""In a kernel: rules that stay keep their counters, and those of others are never touched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ipmasq_agent.planes.rules.table import POSTROUTING
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import Entry, Stated, Verdict, entry_of_prefix
from tests.contract.policies import MANY, PORTS, policy, walk
from tests.contract.subjects import InKernel

# What other programs write, in matches that we never write.
COMMENT = 'it\'s \\"theirs\\" -j RETURN COMMIT ' + "x" * 200
ODD = (
    f'-m comment --comment "{COMMENT}" -m mark --mark 0x7 -j THEIRS',
    "-m set --match-set theirs dst -j THEIRS",
    "-m u32 --u32 0x0=0x1 -j THEIRS",
    "-m physdev --physdev-is-bridged -j THEIRS",
    "-m cgroup --cgroup 1 -j THEIRS",
    '-m string --string "-A IP-MASQ -j ACCEPT" --algo bm -j THEIRS',
    "-m recent --name theirs --rcheck -j THEIRS",
    "-m hashlimit --hashlimit-name theirs --hashlimit-upto 5/min -m mark --mark 0x7 -j THEIRS",
    "-m connmark --mark 0x7 -j CONNMARK --restore-mark",
    "-m quota --quota 1000000 -m mark --mark 0x7 -j THEIRS",
)


def address(family: Family, number: int) -> str:
    """Return one of the addresses of our own that packets are sent to."""
    return f"198.51.100.{number}" if family is Family.IPV4 else f"fd99::{number}"


def to(family: Family, number: int) -> Entry[Verdict]:
    first = 0xC6336400 if family is Family.IPV4 else 0xFD99 << 112
    single = Prefix(family, first + number, family.bits)
    return entry_of_prefix(single, Verdict.NON_MASQUERADE, Stated(str(number)))


@pytest.fixture
def addressed(kernel: InKernel) -> InKernel:
    """A backend of a kernel, in a namespace that has the addresses 1 to 5."""
    # Not 127.0.0.0/8: to masquerade a packet the kernel wants an address of global scope.
    for number in range(1, 6):
        where = (f"{address(kernel.family, number)}/{kernel.family.bits}", "dev", "lo")
        kernel.namespace.run(["ip", "address", "replace", *where])
    return kernel


def send(kernel: InKernel, numbers: Sequence[int]) -> None:
    kernel.send(*(address(kernel.family, number) for number in numbers))


def load_theirs(kernel: InKernel) -> None:
    """Load what others keep, and let a packet be counted by it."""
    where = to(kernel.family, 1)
    lines = [
        "*nat",
        ":PREROUTING DROP [0:0]",
        f":{POSTROUTING} ACCEPT [0:0]",
        ":THEIRS - [0:0]",
        ":EMPTY - [0:0]",
        *(f"-A {POSTROUTING} {rule}" for rule in ODD),
        f"-A {POSTROUTING} -d {kernel.family.show(where.first)} -j THEIRS",
        "-A THEIRS -m mark ! --mark 0x99 -j RETURN",
        "COMMIT\n",
    ]
    kernel.load("\n".join(lines))
    send(kernel, [1, 1, 1])
    assert kernel.packets("THEIRS") == [3]
    assert kernel.packets(POSTROUTING) == [0] * len(ODD) + [3]


def theirs(kernel: InKernel) -> list[str]:
    """Return what is not ours, without the counters of policies.

    iptables-legacy sets those to 0 at each commit, whoever makes it.
    """
    lines = (line for line in kernel.shown() if "IP-MASQ" not in line or "--string" in line)
    return [line.partition(" [")[0] if line[0] == ":" else line for line in lines]


def test_rules_chains_counters_and_policies_of_others_stay_whatever_we_write(
    addressed: InKernel,
) -> None:
    kernel = addressed
    load_theirs(kernel)
    before = theirs(kernel)
    for jump_first in (False, True):
        kernel.place(jump_first=jump_first)
        for wanted in walk(kernel.family, seed=4, steps=8):
            kernel.write(wanted)
            assert theirs(kernel) == before
    kernel.write(policy(kernel.family, range(MANY), ports=PORTS[2]))
    assert theirs(kernel) == before
    kernel.write(None)
    assert theirs(kernel) == before
    assert not any("IP-MASQ" in line and "--string" not in line for line in kernel.shown())


def test_rules_that_stay_keep_their_counters_when_others_change_around_them(
    addressed: InKernel,
) -> None:
    kernel = addressed
    entries = [to(kernel.family, number) for number in (1, 2, 3, 4)]
    kernel.write(policy(kernel.family, entries, local=True))
    send(kernel, [1, 2, 2, 3, 3, 3, 4, 5])
    assert kernel.packets() == [1, 2, 3, 1, 1]
    assert kernel.packets(POSTROUTING) == [8]

    # One goes and one comes in its place; one is added below it; one goes at the end.
    entries[2:3] = [to(kernel.family, 20), to(kernel.family, 21)]
    change = kernel.write(policy(kernel.family, entries, local=True))
    assert (change.keep, len(change.remove), len(change.insert)) == (2, 1, 2)
    assert kernel.packets() == [1, 2, 0, 0, 1, 1]
    assert kernel.write(policy(kernel.family, entries[:-1], local=True))
    assert kernel.packets() == [1, 2, 0, 0, 1]
    assert kernel.packets(POSTROUTING) == [8]


def test_a_change_of_the_last_rule_alone_keeps_every_counter_above_it(
    addressed: InKernel,
) -> None:
    kernel = addressed
    entries = [to(kernel.family, number) for number in (1, 2)]
    kernel.write(policy(kernel.family, entries, local=True))
    send(kernel, [1, 2, 2, 5])
    assert kernel.packets() == [1, 2, 1]
    kernel.write(policy(kernel.family, entries, local=True, random_fully=False))
    assert kernel.packets() == [1, 2, 0]
    assert "--random-fully" not in kernel.rules()[-1]


def test_a_pass_with_nothing_to_change_keeps_every_counter(addressed: InKernel) -> None:
    kernel = addressed
    wanted = policy(kernel.family, [to(kernel.family, 1)], local=True, ports=PORTS[2])
    kernel.write(wanted)
    send(kernel, [1, 5])
    before = kernel.shown()
    assert not kernel.write(wanted)
    assert kernel.shown() == before


def test_a_jump_that_is_moved_leaves_the_chain_and_its_counters_alone(
    addressed: InKernel,
) -> None:
    kernel = addressed
    kernel.load(f"*nat\n:{POSTROUTING} ACCEPT [0:0]\n-A {POSTROUTING} -p sctp -j RETURN\nCOMMIT\n")
    wanted = policy(kernel.family, [to(kernel.family, 1)], local=True)
    kernel.write(wanted)
    send(kernel, [1])
    kernel.place(jump_first=True)
    change = kernel.write(wanted)
    assert len(change.jumps_removed) == 1
    assert kernel.rules(POSTROUTING)[0].endswith("-j IP-MASQ")
    assert kernel.packets() == [1, 0]

"""Others have very many rules in the nat table: what a pass costs follows from ours alone."""

from __future__ import annotations

import json
import sys

from bench.services import kube_proxy
from tests.netns import Namespace

# Reads, writes, reads after somebody else's commit, and answers questions; then tells how
# much netlink gave it, and the peak of its children's memory in KiB.
_PASSES = """
import json, resource, socket, subprocess
from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.hook.read import read_hook
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.netlink import core
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import FamilyPolicy

received = 0

class Counting(socket.socket):
    def recv(self, size):
        global received
        data = super().recv(size)
        received += len(data)
        return data

core.socket.socket = Counting
V4 = Family.IPV4

def policy(*numbers):
    prefixes = [Prefix(V4, 10 << 24 | n << 16, 16) for n in numbers]
    entries = [entry_of_prefix(p, Verdict.NON_MASQUERADE, Stated(str(p))) for p in prefixes]
    return FamilyPolicy(DecisionMap(V4, entries))

assert detect.choose("auto")[0] == "iptables-nft"
assert "iptables-nft" in detect.holders(Placement())
backend = detect.make("iptables-nft", Placement())
assert reconcile_family(backend, V4, policy(1, 2))
assert reconcile_family(backend, V4, policy(2, 3))
subprocess.run(["nft", "add table ip another"], check=True)
assert not reconcile_family(backend, V4, policy(2, 3))
assert backend.dialect.interpret(backend.read_at(V4, 10 << 24)).policy == policy(2, 3)
of_passes = received
(base,) = read_hook(V4, backend.our_base(V4), ()).nat
assert set(base.table.chains) == {"POSTROUTING", "KUBE-POSTROUTING"}
assert reconcile_family(backend, V4, None)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([of_passes, peak]))
"""


def _cost(rules: int) -> tuple[int, int]:
    with Namespace() as namespace:
        text = "\n".join([*kube_proxy(rules), ""])
        namespace.run(["iptables-nft-restore", "--noflush"], stdin=text)
        done = namespace.run([sys.executable, "-c", _PASSES])
    received, peak = json.loads(done.stdout)
    return received, peak


def test_a_pass_costs_what_our_own_rules_cost_however_many_others_have() -> None:
    few, many = _cost(14), _cost(3500)
    # Counters and handles have the same size whatever they say.
    assert many[0] == few[0], "the kernel was asked for rules of others"
    assert many[1] < few[1] + 1024, "a program of ours read the rules of others"


# A legacy table comes and goes whole; what stays with us of it is to be ours alone.
_LEGACY_PASSES = """
import json, os
from pathlib import Path
from ipmasq_agent.agent.reconcile import reconcile_family
from ipmasq_agent.planes import detect
from ipmasq_agent.planes.iptables.legacy import read_chains
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap
from ipmasq_agent.policy.model import FamilyPolicy

V4 = Family.IPV4

def size(pid, key):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0])

backend = detect.make("iptables-legacy", Placement())
assert reconcile_family(backend, V4, FamilyPolicy(DecisionMap(V4, ())))
assert set(backend.read(V4).chains) == {"POSTROUTING", "IP-MASQ"}
led_to = {"POSTROUTING", "IP-MASQ", "KUBE-POSTROUTING"}
for _ in range(2):
    assert set(read_chains(V4, "nat", ["POSTROUTING"], follow=True).chains) == led_to
print(*(size(os.getpid(), key) for key in ("VmRSS", "VmHWM")))
backend.close()
"""


def _kept_of_legacy(rules: int) -> list[int]:
    """Return the KiB that are held after passes, and at most meanwhile."""
    with Namespace() as namespace:
        text = "\n".join([*kube_proxy(rules), ""])
        namespace.run(["iptables-legacy-restore", "--noflush"], stdin=text)
        done = namespace.run([sys.executable, "-c", _LEGACY_PASSES])
    return [int(size) for size in done.stdout.split()]


def test_of_a_large_legacy_table_nothing_stays_in_memory_after_a_pass() -> None:
    # The table is some 7 MB of text, and 8.5 MB as the kernel hands it out for its digest.
    (few, _), (many, most) = _kept_of_legacy(14), _kept_of_legacy(14_000)
    assert many < few + 3_000
    assert most < few + 12_000

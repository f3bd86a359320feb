"""How long the pure rooms take over very many prefixes: ``python -m bench.policy [COUNT]``.

Medians of several rounds in one process, in milliseconds. Parsing is reported by itself:
the decision map is what a change of a policy costs beyond it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from ipmasq_agent.config.assemble import assemble_family
from ipmasq_agent.config.document import parse_document
from ipmasq_agent.config.model import Flags
from ipmasq_agent.planes.iptables.compile import compile_policy
from ipmasq_agent.planes.iptables.interpret import interpret
from ipmasq_agent.planes.iptables.plan import after, plan
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.planes.rules.table import empty_table
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.decisions import DecisionMap
from ipmasq_agent.policy.model import Capabilities

ROUNDS = 5
FLAGS = Flags(enable_ipv6=True)


def document(family: Family, count: int) -> bytes:
    """Return a document of ``count`` prefixes that do not touch."""
    shift = family.bits - 28
    base = 0 if family is Family.IPV4 else 0xFD << 120
    lines = (f"- '{family.show(base | n << shift + 1)}/28'" for n in range(count))
    text = "\n".join(lines)
    return f"cidrLimit: {count}\nnonMasqueradeCIDRs:\n{text}\n".encode()


def median(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median time of ``work`` in milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def measure(family: Family, count: int) -> dict[str, float]:
    """Return what each step takes for ``count`` prefixes of a family."""
    content = document(family, count)
    config = parse_document(content, "bench", FLAGS).config

    policy = assemble_family(config, family, Capabilities())
    decisions = policy.decisions
    fewer = DecisionMap(family, [e for n, e in enumerate(decisions.entries) if n != count // 2])
    placement = Placement()
    empty = empty_table(family)
    few = min(count, 10_000)
    small = assemble_family(
        parse_document(document(family, few), "bench", FLAGS).config,
        family,
        Capabilities(),
    )
    desired = compile_policy(small, placement)
    table = after(empty, desired)
    addresses = range(0, family.last_address, family.last_address // 100_000)
    return {
        "document to entries": median(lambda: parse_document(content, "bench", FLAGS), 3),
        "entries to decision map": median(
            lambda: assemble_family(config, family, Capabilities()).decisions
        ),
        "100,000 look-ups": median(lambda: [decisions.decide(address) for address in addresses]),
        "difference of two": median(lambda: list(decisions.difference(fewer))),
        f"compile {few:,} to rules": median(lambda: compile_policy(small, placement), 3),
        f"plan {few:,} rules, none changed": median(lambda: plan(table, desired), 3),
        f"interpret {few:,} rules": median(lambda: interpret(table, placement), 3),
    }


def main() -> None:
    """Print a table of medians for both families."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    columns = {family: measure(family, count) for family in Family}
    print(f"{count:,} prefixes, median ms{'':14}IPv4      IPv6")
    for label, first in columns[Family.IPV4].items():
        print(f"{label:38}{first:8.1f}  {columns[Family.IPV6][label]:8.1f}")


if __name__ == "__main__":
    main()

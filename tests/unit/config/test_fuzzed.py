"""No document ends the agent: it is refused with ``ConfigError``, or every plane can hold it."""

from __future__ import annotations

import os

import pytest

from ipmasq_agent.config.assemble import assemble_family, is_large
from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.config.keys import RESYNC_INTERVAL, view
from ipmasq_agent.config.model import Config, Flags
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.planes.bpf.compile import compile_policy
from ipmasq_agent.planes.iptables import compile as iptables
from ipmasq_agent.planes.nftables import compile as nftables
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.facts import LINKS, NODE_ADDRESSES, OWN_POD_CIDRS, ROUTES, Facts, Links
from ipmasq_agent.policy.model import Capabilities
from tests.unit.config.fuzzing import fuzzed

PLACEMENT = Placement()
FACTS = Facts(
    {
        NODE_ADDRESSES: frozenset({(Family.IPV4, 0x0A000001), (Family.IPV6, 1 << 64)}),
        OWN_POD_CIDRS: (Prefix(Family.IPV4, 10 << 24, 24), Prefix(Family.IPV6, 0xFD << 120, 64)),
        LINKS: Links(("lo", "eth0", "eth1", "bond0"), ("eth0",)),
        ROUTES: ((Prefix(Family.IPV4, 0, 0), 0x0A000001), (Prefix(Family.IPV6, 0, 0), None)),
    }
)
CHUNK = 500


def compile_everywhere(config: Config, flags: Flags) -> None:
    """Make of a document what each plane would write; ``view`` is what people see of it."""
    view(config)
    is_large(config, FACTS)
    for family in config.families:
        policy = assemble_family(config, family, Capabilities(), FACTS)
        iptables.compile_policy(policy, PLACEMENT)
        iptables.compile_policy(policy, PLACEMENT, set_name="IP-MASQ")
        nftables.compile_policy(policy, PLACEMENT)
        compile_policy(policy)


def accepted(seed: int) -> bool:
    """Whether the document of a seed is accepted; fails where it ends anything."""
    document = fuzzed(seed)
    try:
        understood = parse_documents(document.parts, "document", document.flags)
        lines = understood.warnings
        compile_everywhere(understood.config, document.flags)
    except ConfigError as refusal:
        lines = refusal.problems
    except Exception as cause:
        raise AssertionError(f"fuzzed({seed}): {cause!r}: {document}") from cause
    else:
        assert understood.config[RESYNC_INTERVAL] > 0
        assert all(line.isprintable() and len(line) < 1000 for line in lines), f"fuzzed({seed})"
        return True
    assert lines, f"fuzzed({seed})"
    assert all(line.isprintable() and len(line) < 1000 for line in lines), f"fuzzed({seed})"
    return False


@pytest.mark.parametrize("chunk", range(10))
def test_no_document_raises_anything_but_a_config_error(chunk: int) -> None:
    count = sum(map(accepted, range(chunk * CHUNK, (chunk + 1) * CHUNK)))
    # Documents that are all refused would say nothing about the planes.
    assert CHUNK // 8 < count < CHUNK * 4 // 5


@pytest.mark.long
@pytest.mark.parametrize("chunk", range(20))
def test_none_of_a_great_many_documents_does(chunk: int) -> None:
    # Others in each run: a failure names the seed of its document.
    first = int.from_bytes(os.urandom(6)) + chunk
    for seed in range(first, first + 10_000):
        accepted(seed)

"""What an operator writes: documents, kubeconfigs, flags and the values that these hold."""

from __future__ import annotations

import contextlib
import io
import shlex
from collections.abc import Callable

import click

from ipmasq_agent.agent.http import split_address
from ipmasq_agent.cli.entry import cli
from ipmasq_agent.cli.goflags import normalise
from ipmasq_agent.cli.options import settings_of, split_configmap
from ipmasq_agent.config.assemble import assemble_family, is_large
from ipmasq_agent.config.document import parse_documents
from ipmasq_agent.config.durations import parse_duration, show_duration
from ipmasq_agent.config.keys import RESYNC_INTERVAL, view
from ipmasq_agent.config.model import Config, Flags
from ipmasq_agent.errors import ConfigError
from ipmasq_agent.planes.bpf.compile import compile_policy
from ipmasq_agent.planes.iptables import compile as iptables
from ipmasq_agent.planes.nftables import compile as nftables
from ipmasq_agent.planes.placement import Placement
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.cidrs import parse_cidr, parse_listed
from ipmasq_agent.policy.facts import LINKS, NODE_ADDRESSES, OWN_POD_CIDRS, ROUTES, Facts, Links
from ipmasq_agent.policy.flows import parse_end
from ipmasq_agent.policy.model import Capabilities, parse_port_ranges
from ipmasq_agent.sources import kubeconfig as kubeconfigs
from tests.fuzz.doors import file_of

PLACEMENT = Placement()
FACTS = Facts(
    {
        NODE_ADDRESSES: frozenset({(Family.IPV4, 0x0A000001), (Family.IPV6, 1 << 64)}),
        OWN_POD_CIDRS: (Prefix(Family.IPV4, 10 << 24, 24), Prefix(Family.IPV6, 0xFD << 120, 64)),
        LINKS: Links(("lo", "eth0", "eth1", "bond0"), ("eth0",)),
        ROUTES: ((Prefix(Family.IPV4, 0, 0), 0x0A000001), (Prefix(Family.IPV6, 0, 0), None)),
    }
)
FLAGS = (Flags(enable_ipv6=True), Flags(), Flags(enable_ipv6=True, cidr_limit=None))


def compile_everywhere(config: Config) -> None:
    """Make of a document what each plane would write; ``view`` is what people see of it."""
    view(config)
    is_large(config, FACTS)
    for family in config.families:
        policy = assemble_family(config, family, Capabilities(), FACTS)
        iptables.compile_policy(policy, PLACEMENT)
        iptables.compile_policy(policy, PLACEMENT, set_name="IP-MASQ")
        nftables.compile_policy(policy, PLACEMENT)
        compile_policy(policy)


def document(data: bytes) -> None:
    """Read a document; what is said of it is one line each, of a length to be read."""
    try:
        understood = parse_documents([("document", data)], "document", FLAGS[len(data) % 3])
        compile_everywhere(understood.config)
        assert understood.config[RESYNC_INTERVAL] > 0
        lines: tuple[str, ...] = understood.warnings
    except ConfigError as refusal:
        lines = refusal.problems
    assert all(line.isprintable() and len(line) < 1000 for line in lines)


def kubeconfig(data: bytes) -> None:
    """Look through a kubeconfig."""
    with file_of(data) as path:
        kubeconfigs.check([path])


def _duration(text: str) -> None:
    nanoseconds = parse_duration(text)
    assert parse_duration(show_duration(nanoseconds)) == nanoseconds


_VALUES: tuple[Callable[[str], object], ...] = (
    *(_duration, parse_cidr, parse_listed, parse_end, parse_port_ranges),
)


def value(data: bytes) -> None:
    """Read one value; the first byte says of which kind."""
    text = data[1:].decode(errors="surrogateescape")
    _VALUES[data[0] % len(_VALUES) if data else 0](text)


def endpoint(data: bytes) -> None:
    """Read where to listen, or which ConfigMap is meant."""
    text = data[1:].decode(errors="surrogateescape")
    (split_address if data[:1] == b"\0" else split_configmap)(text)


_MOST_WORDS = 1000


def arguments(data: bytes) -> None:
    """Read a command line, a word in each line; no verb is run."""
    words = data.decode(errors="surrogateescape").split("\n")[:_MOST_WORDS]
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            words = normalise([word for word in words if "\0" not in word])
            with cli.make_context("ipmasq-agent", list(words), resilient_parsing=False) as outer:
                rest = [*outer._protected_args, *outer.args]
                name, command, rest = cli.resolve_command(outer, rest)
                assert command is not None
                with command.make_context(name, rest, parent=outer) as inner:
                    if "masq_chain" in inner.params:
                        settings_of({**inner.params, "socket": None})
        except (click.ClickException, click.exceptions.Exit):
            return
    shlex.join(words)

"""The flags that verbs share: one record for each, and what they add up to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ipmasq_agent.cli.asking import by_command_line, completed, resident
from ipmasq_agent.cli.goflags import GoBool
from ipmasq_agent.config.model import DEFAULT_CIDR_LIMIT, Flags
from ipmasq_agent.errors import UsageError
from ipmasq_agent.host.local_socket import DEFAULT_PATH
from ipmasq_agent.planes import registry
from ipmasq_agent.planes.placement import DEFAULT_CHAIN, DEFAULT_PINS, Placement
from ipmasq_agent.planes.rules.owners import owner_of_name
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import parse_port_ranges

if TYPE_CHECKING:
    from ipmasq_agent.agent.introduction import Introduction
    from ipmasq_agent.sources import Document, Source

DEFAULT_CONFIG = "/etc/config/ip-masq-agent"
# XT_EXTENSION_MAXNAMELEN less the terminating zero: what a chain's name may hold.
_LONGEST_CHAIN = 28
_TAKEN = re.compile(
    "PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING|"
    "ACCEPT|DROP|RETURN|QUEUE|MASQUERADE|SNAT|DNAT|REDIRECT|NETMAP"
)

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the shared flags say.

    Attributes:
        named: somebody wrote the document's name on this command line, and so expects that
            it is there.
        agent: the one of this node that was asked for what the command line leaves open.
    """

    config: str = DEFAULT_CONFIG
    configmaps: tuple[str, ...] = ()
    canary: str | None = None
    named: bool = False
    record: str | None = None
    kubeconfig: str | None = None
    node_name: str | None = None
    backend: str = "auto"
    placement: Placement = field(default_factory=Placement)
    flags: Flags = field(default_factory=Flags)
    agent: Introduction | None = None

    @property
    def families(self) -> tuple[Family, ...]:
        """Those that are managed."""
        return (Family.IPV4, Family.IPV6) if self.flags.enable_ipv6 else (Family.IPV4,)

    @property
    def in_force(self) -> Document | None:
        """The agent's document, where it tells one and the command line names no other."""
        return self.agent.document if self.agent is not None and not self.named else None

    def naming(self, config: str = DEFAULT_CONFIG, configmap: str | None = None) -> Settings:
        """Return the settings for a document that somebody names: a file's, or the API's."""
        configmaps = () if configmap is None else (configmap,)
        return replace(self, config=config, configmaps=configmaps, canary=None, named=True)

    def source(self) -> Source:
        """Return the source that the flags name; the API's library is loaded only for it.

        Of several ConfigMaps the documents are merged in the order of their names.
        """
        if self.configmaps:
            from ipmasq_agent.sources.configmap import ConfigMapSource
            from ipmasq_agent.sources.merged import MergedSource

            sources = [
                ConfigMapSource(*split_configmap(text), kubeconfig=self.kubeconfig)
                for text in sorted(set(self.configmaps))
            ]
            everyone = sources[0] if len(sources) == 1 else MergedSource(sources)
            return everyone if self.canary is None else self._or_tried(everyone, self.canary)
        if self.config == "-":
            from ipmasq_agent.sources.stdin import StdinSource

            return StdinSource()
        from ipmasq_agent.sources.file import FileSource

        return FileSource(self.config)

    def _or_tried(self, everyone: Source, canary: str) -> Source:
        from ipmasq_agent.sources.canary import CanarySource
        from ipmasq_agent.sources.configmap import ConfigMapSource
        from ipmasq_agent.sources.facts import node_name

        node = node_name(self.node_name)
        named = split_configmap(canary, "--canary-configmap")
        return CanarySource(
            everyone, ConfigMapSource(*named, kubeconfig=self.kubeconfig, tried_by=node)
        )


def setting(flag: str, *more: str, **attributes: Any) -> Callable[[F], F]:
    """Return an option that the environment sets too: IPMASQ_MASQ_CHAIN for ``--masq-chain``.

    All verbs that run in a container share its environment. A flag wins over it. A truth is
    taken in the spellings of Go.
    """
    if isinstance(attributes.get("default"), bool):
        attributes["type"] = GoBool()
    variable = "IPMASQ_" + flag.removeprefix("--").upper().replace("-", "_")
    return click.option(flag, *more, envvar=variable, show_envvar=True, **attributes)


SOURCE = (
    setting(
        "--config",
        metavar="PATH",
        help="The document: a file, the directory of a mounted ConfigMap (DIRECTORY/* for all "
        f"of its files), or - for a pipe.  [default: {DEFAULT_CONFIG}]",
    ),
    setting(
        "--configmap",
        metavar="NAMESPACE/NAME[:KEY]",
        multiple=True,
        help="Take the document from the Kubernetes API instead. Without KEY it is the key "
        "`config`, else `ip-masq-agent`, else all that there are; * is all keys. Given several "
        "times, the documents are merged by name.",
    ),
    setting(
        "--canary-configmap",
        metavar="NAMESPACE/NAME[:KEY]",
        help="A ConfigMap to prefer to that of --configmap while it exists and its annotation "
        "ipmasq-agent/nodes means this node: names of nodes, or a share like 5%.",
    ),
)
API = (
    setting(
        "--kubeconfig",
        metavar="PATH",
        help="Credentials for the API; without it those of the pod, then of the user.",
    ),
    setting(
        "--node-name",
        metavar="NAME",
        help="This node's name in the API, for `podCIDRs: auto` and --canary-configmap.  "
        "[default: $NODE_NAME, else the host's name]",
    ),
)
MEANING = (
    setting(
        "--enable-ipv6",
        default=False,
        help="Manage IPv6 too; without it, an IPv6 entry is refused.",
    ),
    setting(
        "--nomasq-all-reserved-ranges",
        default=False,
        help="Let the defaults cover all ranges that RFCs reserve, not only RFC 1918.",
    ),
)
BACKEND = setting(
    "--backend",
    type=click.Choice(registry.choices()),
    default="auto",
    help="The data plane; auto takes the iptables that kubelet uses on the node, with a set "
    "once the policy is large.",
)
RULES = (
    setting(
        "--masq-chain",
        metavar="NAME",
        default=DEFAULT_CHAIN,
        help="The chain of the nat table that is ours.",
    ),
    setting(
        "--adopt",
        default=False,
        help="Take over, or clean up, a chain of that name that does not look like ours or "
        "upstream's.",
    ),
    setting(
        "--jump-position",
        type=click.Choice(["append", "first"]),
        default="append",
        help="Where in POSTROUTING the jump to our chain is put.",
    ),
    setting(
        "--random-fully",
        default=True,
        help="Choose source ports at random, where the host's iptables can.",
    ),
    setting(
        "--to-ports",
        metavar="RANGES",
        help="Source ports for TCP, UDP and SCTP, like 1024-29999,32768-65535.",
    ),
    setting(
        "--bpf-pins",
        metavar="DIR",
        default=DEFAULT_PINS,
        help="Where the maps and programs of the bpf data plane are pinned.",
    ),
    setting(
        "--bpf-flows",
        type=click.IntRange(1024, 1 << 26),
        metavar="COUNT",
        help="How many translated flows the bpf data plane has room for, and half as many that "
        "keep their source, 212 bytes each.  [default: one for each 32 KiB of memory, up to "
        "524288]",
    ),
)


SOCKET = setting(
    "--socket",
    metavar="PATH",
    default=DEFAULT_PATH,
    help="Where the running agent listens, which tells the verbs what is not given here; empty "
    "to ask nobody.",
)
RECORD = setting(
    "--record",
    metavar="FILE",
    help="The record of translations: which pod had which address and port of the node, and when.",
)
MEANT_BACKEND = setting(
    "--backend",
    type=click.Choice(registry.choices()),
    help="The data plane that the document is for: plain iptables takes 64 entries, unless the "
    "document sets cidrLimit.  [default: iptables]",
)
"""Whose limit of entries a document is held to."""
OWN = (*SOURCE, *API, BACKEND, *RULES, *MEANING)
"""All that say how to bring the kernel to a document."""


def state_option(about: str) -> Callable[[F], F]:
    """Return the option of where something is kept on the node; ``about`` says what."""
    return setting("--state-dir", metavar="DIR", default="/run/ipmasq-agent", help=about)


def shared(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Give a command these options, in order; ``SOCKET`` where the agent may tell the rest."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


ONLY_WRITTEN = ("adopt", "jump_position", "random_fully", "to_ports", "bpf_flows")
"""Options that bear on what is written, and on no question to the kernel."""


def hiding(*names: str) -> Callable[[click.Command], click.Command]:
    """Keep shared options out of a verb's help that change nothing about its answer.

    They are taken all the same: an agent's flags may be pasted as they are.
    """

    def decorate(command: click.Command) -> click.Command:
        for option in command.params:
            if isinstance(option, click.Option) and option.name in names:
                option.hidden = True
        return command

    return decorate


def settings_of(options: dict[str, Any]) -> Settings:
    """Return what the values of shared options add up to.

    Where ``--socket`` is among them, the agent that listens there tells what is not on the
    command line.

    Raises:
        UsageError: they contradict each other, or one cannot be read.
    """
    agent = resident(options["socket"]) if options.get("socket") else None
    if agent is not None:
        options = completed(options, agent)
    config, configmaps = _one_source(options)
    for text in configmaps:
        split_configmap(text)
    meant = options.get("backend") or "iptables"
    named = bool(config or configmaps) and by_command_line("configmap" if configmaps else "config")
    canary = options.get("canary_configmap") or None
    if canary is not None:
        split_configmap(canary, "--canary-configmap")
        if named and not by_command_line("canary_configmap"):
            canary = None  # who names a document means that one
        elif not configmaps:
            raise UsageError(
                "--canary-configmap stands in for a ConfigMap, and --configmap names none",
                remedy="give --configmap as well, or leave out both",
            )
    return Settings(
        config=config or DEFAULT_CONFIG,
        configmaps=configmaps,
        canary=canary,
        named=named,
        record=options.get("record"),
        kubeconfig=options.get("kubeconfig"),
        node_name=options.get("node_name"),
        backend=options.get("backend") or "auto",
        placement=Placement(
            chain=_chain_name(options.get("masq_chain", DEFAULT_CHAIN)),
            jump_first=options.get("jump_position") == "first",
            pins=options.get("bpf_pins") or DEFAULT_PINS,
            flows=options.get("bpf_flows"),
            adopt=options.get("adopt", False),
        ),
        flags=Flags(
            enable_ipv6=options.get("enable_ipv6", False),
            nomasq_all_reserved_ranges=options.get("nomasq_all_reserved_ranges", False),
            random_fully=options.get("random_fully", True),
            to_ports=parsed("--to-ports", parse_port_ranges, options.get("to_ports") or ""),
            # Plain iptables keeps upstream's limit; the others take what they can hold.
            cidr_limit=None if registry.takes_any_size(meant) else DEFAULT_CIDR_LIMIT,
        ),
        agent=agent,
    )


def _one_source(options: dict[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """Return --config and --configmap, of which a flag silences the other's variable."""
    config: str | None = options.get("config")
    configmaps: tuple[str, ...] = options.get("configmap") or ()
    if config is None or not configmaps:
        return config, configmaps
    from_flag = [by_command_line("config"), by_command_line("configmap")]
    if from_flag == [True, False]:
        return config, ()
    if from_flag == [False, True]:
        return None, configmaps
    raise UsageError(
        "--config and --configmap name two documents",
        remedy="give one of them; $IPMASQ_CONFIG and $IPMASQ_CONFIGMAP count as well",
    )


def parsed(flag: str, parse: Callable[[str], T], text: str, like: str | None = None) -> T:
    """Return what the words of a flag stand for.

    Raises:
        UsageError: for nothing; ``like`` shows what would.
    """
    try:
        return parse(text)
    except ValueError as cause:
        remedy = None if like is None else f"write it like {like}"
        raise UsageError(f"{flag}: {text!r}: {cause}", remedy=remedy) from cause


def split_configmap(text: str, flag: str = "--configmap") -> tuple[str, str, str | None]:
    """Return namespace, name and key of ``NAMESPACE/NAME[:KEY]``; the key ``*`` means all."""
    match = re.fullmatch(r"([a-z0-9.-]+)/([a-z0-9.-]+)(?::([A-Za-z0-9._-]+|\*))?", text)
    if match is None:
        raise UsageError(
            f"{flag}: {text!r} is not NAMESPACE/NAME or NAMESPACE/NAME:KEY",
            remedy="write it like kube-system/ip-masq-agent",
        )
    return match[1], match[2], match[3]


def _chain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.+:][A-Za-z0-9_.+:-]*", name) or len(name) > _LONGEST_CHAIN:
        raise UsageError(
            f"--masq-chain: {name!r} cannot name a chain",
            remedy=f"use up to {_LONGEST_CHAIN} letters, digits and -_.+:",
        )
    if _TAKEN.fullmatch(name):
        raise UsageError(f"--masq-chain: {name} is taken by iptables itself")
    owner = owner_of_name(name)
    if owner is not None:
        raise UsageError(
            f"--masq-chain: {name} is a name of {owner}, whose chains are never ours",
            remedy=f"choose another one, like {DEFAULT_CHAIN}",
        )
    return name

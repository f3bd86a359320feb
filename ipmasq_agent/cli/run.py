"""``run``: the agent."""

from __future__ import annotations

import logging
import os
import signal
from functools import lru_cache, partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent import __version__
from ipmasq_agent.agent.choice import PlaneChoice
from ipmasq_agent.agent.events import Signal
from ipmasq_agent.agent.introduction import NAME_PAGE, Introducer
from ipmasq_agent.agent.loop import Agent, LoopSettings
from ipmasq_agent.agent.ports import PortWatch
from ipmasq_agent.agent.reception import Reception, TokenFile
from ipmasq_agent.agent.shadows import Shadows
from ipmasq_agent.cli.klog import configure, klog_options
from ipmasq_agent.cli.options import (
    OWN,
    RECORD,
    SOCKET,
    Settings,
    parsed,
    setting,
    settings_of,
    shared,
    state_option,
)
from ipmasq_agent.cli.wiring import backend_choice, fact_source, kept_in
from ipmasq_agent.config.durations import UNITS, parse_duration
from ipmasq_agent.errors import HostError, UsageError
from ipmasq_agent.host import capabilities
from ipmasq_agent.host.devices import egress_devices
from ipmasq_agent.host.local_socket import get, identity
from ipmasq_agent.host.seat import Seat
from ipmasq_agent.logs import event, one_line
from ipmasq_agent.planes import registry
from ipmasq_agent.planes.hook.read import hook_generation, read_hook
from ipmasq_agent.planes.live import ports_taken

if TYPE_CHECKING:
    from ipmasq_agent.agent.announcer import Announcer
    from ipmasq_agent.agent.recorder import Recorder

_FILES = 4  # that a record is made of
_DESTINATIONS = 8  # of whose ports status and metrics tell


@click.command(
    "run",
    short_help="The agent: watch the document, keep the kernel in step.",
    epilog="""\b
Examples:
  ipmasq-agent run --config /etc/config/ip-masq-agent
  ipmasq-agent run --configmap kube-system/ip-masq-agent --enable-ipv6=true
  ipmasq-agent --masq-chain=IP-MASQ --nomasq-all-reserved-ranges   (as upstream's arguments)
""",
)
@shared(*OWN)
@setting(
    "--http-address",
    metavar="HOST:PORT",
    default="127.0.0.1:9797",
    help="Where to serve /healthz, /readyz, /status and /metrics; empty for nowhere.",
)
@setting(
    "--metrics-token-file",
    metavar="FILE",
    help="Answer /metrics and /status on that port only to who sends the token in this file, as "
    "`Authorization: Bearer TOKEN`. The file may change at any time.  [default: to everybody]",
)
@setting(
    "--cleanup-on-exit",
    default=False,
    help="Remove our rules when told to stop. They stay otherwise, so traffic goes on.",
)
@setting(
    "--drain-timeout",
    metavar="DURATION",
    default="1h",
    help="After a move away from bpf, how long the flows that it translates may go on.",
)
@state_option(
    "Where the last good document of the API is kept, to go on with after a restart while "
    "the API is away; empty for nowhere."
)
@SOCKET
@RECORD
@setting(
    "--record-size",
    type=click.IntRange(1),
    metavar="MEGABYTES",
    default=64,
    help="What the record may take, in four files; a translation takes some 80 bytes.",
)
@setting(
    "--events",
    default=False,
    help="Write Events: on the ConfigMap where its document is refused, and accepted again; on the "
    "Node where others undo our rules, or its source ports run out.",
)
@setting(
    "--drop-capabilities",
    default=False,
    help="Give up all capabilities that no work here needs, and any way to new ones.",
)
@setting("--log-format", type=click.Choice(["text", "json"]), default="text")
@setting(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="A pass that changes nothing is logged at debug.",
)
@klog_options
def command(
    http_address: str,
    metrics_token_file: str | None,
    cleanup_on_exit: bool,
    drain_timeout: str,
    state_dir: str,
    socket: str,
    record_size: int,
    events: bool,
    drop_capabilities: bool,
    log_format: str,
    log_level: str,
    **options: Any,
) -> int:
    """Watch the document and keep the kernel in step with it, until told to stop.

    A change applies at once; every resyncInterval the kernel is looked at again and healed.
    A document with an error changes nothing: the last good one stays in force. SIGHUP reads
    the document and the kernel again; SIGTERM stops and leaves the rules in place.
    """
    configure(log_format, log_level, options)
    settings = settings_of(options)
    if settings.config == "-" and not settings.configmaps:
        # Said here: in the loop it would be a source that fails now and may come back.
        raise UsageError("`run` cannot watch standard input", remedy="give it a file")
    if events and not settings.configmaps:
        raise UsageError(
            "--events writes to the API, which --config does without",
            remedy="give --configmap instead, or leave out --events",
        )
    _limit_capabilities(settings.backend, drop=drop_capabilities)
    drain = parsed("--drain-timeout", parse_duration, drain_timeout) / UNITS["s"]
    if drain < 0:
        raise UsageError(
            f"--drain-timeout: {drain_timeout!r} is over before it began; write 0s for none"
        )
    seat = Seat(registry.claims(settings.placement))
    source = settings.source()
    choice = backend_choice(settings)
    count = partial(ports_taken, ranges=settings.flags.to_ports, most=_DESTINATIONS)
    agent = Agent(
        source,
        choice,
        LoopSettings(settings.flags, cleanup_on_exit, drain),
        egress_devices,
        fact_source(settings),
        seat.take,
        kept_in(state_dir, source, settings) if state_dir else None,
        Shadows(read_hook, hook_generation),
        ports=PortWatch(choice, count),
        recorder=_recorder(choice, settings.record, record_size) if settings.record else None,
        announcer=_announcer(settings) if events else None,
    )

    def on_signal(number: int, frame: FrameType | None) -> None:
        agent.send(Signal.RELOAD if number == signal.SIGHUP else Signal.STOP)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    event(
        logging.INFO,
        "starting",
        version=__version__,
        source=agent.source.name,
        backend=settings.backend,
        chain=settings.placement.chain,
        ipv6=settings.flags.enable_ipv6,
        http=http_address or "off",
        socket=socket or "off",
    )
    # One document or the other, as a flag silences what the environment says. The record is not
    # told like the document, but read where it is.
    told = {
        "config": None if settings.configmaps else settings.config,
        "configmap": settings.configmaps,
        "canary_configmap": settings.canary,
        "record": settings.record and os.path.abspath(settings.record),
    }
    token = TokenFile(metrics_token_file) if metrics_token_file else None
    introducer = Introducer(agent, options | told)
    reception = Reception(agent, http_address, socket, introducer, token)
    ours = set(registry.claims(settings.placement, settings.backend))

    @lru_cache(maxsize=1)
    def name(there: object) -> str:
        return _name(socket)

    def keeper() -> str | None:
        kept = [place for place in seat.take() if place in ours]
        if not kept:
            return None
        # Asked again when another socket is there, and not each time: the other one may hang.
        return f"{name(identity(socket))} keeps {' and '.join(kept)} on this node"

    try:
        if keeper() is not None:
            reception.open_beside()
        if agent.stand_by(keeper):
            for place in seat.take():
                event(logging.WARNING, "another agent keeps this as well", place=place)
            reception.open()
            agent.run()
    finally:
        # First the ports, then the seat: who takes over finds them free.
        reception.close()
        seat.close()
    return 0


def _limit_capabilities(backend: str, *, drop: bool) -> None:
    """Give up what is of no use here, or say so; and say what is missing.

    Raises:
        HostError: it cannot be given up.
    """
    needed = registry.capabilities(backend)
    of_use = needed | registry.to_leave()
    if drop:
        capabilities.keep_only(of_use)
    elif idle := len(capabilities.held() - of_use):
        message = "holds capabilities that it does not need; --drop-capabilities gives them up"
        event(logging.WARNING, message, idle=idle)
    if missing := ",".join(capabilities.lacking(needed)):
        message = "lacks capabilities that it may need"
        event(logging.WARNING, message, missing=missing, backend=backend)


def _recorder(choice: PlaneChoice, path: str, megabytes: int) -> Recorder:
    from ipmasq_agent.agent.record import RecordFile
    from ipmasq_agent.agent.recorder import Recorder  # who keeps no record pays for none

    return Recorder(choice, RecordFile(path, (megabytes << 20) // _FILES, _FILES))


def _announcer(settings: Settings) -> Announcer:
    from ipmasq_agent.agent.announcer import Announcer  # nor does who writes no Events
    from ipmasq_agent.sources.facts import node_name
    from ipmasq_agent.sources.kube_api import KubeApi

    return Announcer(KubeApi(settings.kubeconfig), node_name(settings.node_name))


def _name(socket_path: str) -> str:
    """Return how to speak of the agent that listens at a path, which may be another one."""
    try:
        told = get(socket_path, NAME_PAGE) if socket_path else None
    except HostError:
        told = None
    return one_line(told.decode(errors="replace")) if told else "another agent"

"""``run``: the agent."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent import __version__
from ipmasq_agent.cli.goflags import GoBool
from ipmasq_agent.cli.klog import configure, klog_options
from ipmasq_agent.cli.options import Settings, agent_options, setting, settings_of
from ipmasq_agent.config.durations import UNITS, parse_duration
from ipmasq_agent.errors import UsageError

if TYPE_CHECKING:
    from ipmasq_agent.agent.loop import LoopSettings

# A pass that takes longer than this is stuck, and a restart is the better agent.
_STUCK = 300.0


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
@agent_options
@setting(
    "--http-address",
    metavar="HOST:PORT",
    default="127.0.0.1:9797",
    show_default=True,
    help="Where to serve /healthz, /readyz, /status and /metrics; empty for nowhere.",
)
@setting(
    "--cleanup-on-exit",
    type=GoBool(),
    default=False,
    show_default=True,
    help="Remove our rules when told to stop. They stay otherwise, so traffic goes on.",
)
@setting(
    "--drain-timeout",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="After a move away from bpf, how long the flows that it translates may go on.",
)
@setting(
    "--state-dir",
    metavar="DIR",
    default="/run/ipmasq-agent",
    show_default=True,
    help="Where the last good document of the API is kept, to go on with after a restart while "
    "the API is away; empty for nowhere.",
)
@setting("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@setting(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="A pass that changes nothing is logged at debug.",
)
@klog_options
def command(
    http_address: str,
    cleanup_on_exit: bool,
    drain_timeout: str,
    state_dir: str,
    log_format: str,
    log_level: str,
    **options: Any,
) -> int:
    """Watch the document and keep the kernel in step with it, until told to stop.

    A change applies at once; every resyncInterval the kernel is looked at again and healed.
    A document with an error changes nothing: the last good one stays in force. SIGHUP reads
    the document and the kernel again; SIGTERM stops and leaves the rules in place.
    """
    from ipmasq_agent.agent.loop import LoopSettings

    configure(log_format, log_level, options)
    settings = settings_of(options)
    if settings.config == "-" and not settings.configmaps:
        # Said here: in the loop it would be a source that fails now and may come back.
        raise UsageError("`run` cannot watch standard input", remedy="give it a file")
    loop = LoopSettings(settings.flags, cleanup_on_exit, _seconds(drain_timeout))
    return _run(settings, http_address, loop, state_dir)


def _seconds(duration: str) -> float:
    try:
        seconds = parse_duration(duration) / UNITS["s"]
    except ValueError as cause:
        raise UsageError(f"--drain-timeout: {duration!r} {cause}") from cause
    if seconds < 0:
        raise UsageError(
            f"--drain-timeout: {duration!r} is over before it began; write 0s for none"
        )
    return seconds


def _run(settings: Settings, http_address: str, loop: LoopSettings, state_dir: str) -> int:
    from ipmasq_agent.agent.events import Signal
    from ipmasq_agent.agent.http import HttpServer
    from ipmasq_agent.agent.loop import Agent
    from ipmasq_agent.agent.shadows import Shadows
    from ipmasq_agent.cli.wiring import backend_choice, fact_source, kept_in
    from ipmasq_agent.host.devices import egress_devices
    from ipmasq_agent.host.seat import Seat
    from ipmasq_agent.logs import event
    from ipmasq_agent.planes import registry
    from ipmasq_agent.planes.hook.read import hook_generation, read_hook

    seat = Seat(registry.claims(settings.placement))
    source = settings.source()
    agent = Agent(
        source,
        backend_choice(settings),
        loop,
        egress_devices,
        fact_source(settings),
        seat.take,
        kept_in(state_dir, source, settings) if state_dir else None,
        Shadows(read_hook, hook_generation),
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
    )
    for place in seat.take():
        event(logging.WARNING, "another agent keeps this as well", place=place)
    server = HttpServer(http_address, _answers(agent)) if http_address else None
    try:
        agent.run()
    finally:
        seat.close()
        if server:
            server.close()
    return 0


def _answers(agent: Any) -> dict[str, Any]:
    from ipmasq_agent.agent.http import Answer, data, text
    from ipmasq_agent.host.threads import dead

    def healthy() -> Answer:
        since = agent.busy_since
        if since is not None and time.monotonic() - since > _STUCK:
            return text(503, f"a pass takes longer than {_STUCK:g} s")
        return (
            text(503, f"not running: {', '.join(ended)}") if (ended := dead()) else text(200, "ok")
        )

    def ready() -> Answer:
        status = agent.status
        return text(200, "ok") if status.ready else text(503, status.why_not_ready())

    def exposition() -> Answer:
        from ipmasq_agent.agent.exposition import CONTENT_TYPE

        return 200, CONTENT_TYPE, agent.metrics.text(agent.status_now())

    return {
        "/healthz": healthy,
        "/readyz": ready,
        "/status": lambda: data(agent.status_now().as_data()),
        "/metrics": exposition,
    }

"""``observe``: connections as they are made, and who had an address and port."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import lru_cache, partial
from itertools import islice
from operator import itemgetter
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.options import ONLY_WRITTEN, hiding, node_options, record_option, settings_of
from ipmasq_agent.errors import AgentError, SourceError, UsageError

if TYPE_CHECKING:
    from ipmasq_agent.answers.impact import Ruling
    from ipmasq_agent.answers.observed import Sight, Wanted
    from ipmasq_agent.cli.options import Settings
    from ipmasq_agent.planes.plane import AnyPlane
    from ipmasq_agent.policy.addresses import Family, Prefix
    from ipmasq_agent.policy.flows import Flow
    from ipmasq_agent.sources.pods import Names

_PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "icmpv6")
_TURN = 0.2  # seconds until Ctrl-C is noticed
_AGE_OF_RULES, _AGE_OF_NAMES = 5.0, 10.0  # seconds, after which they are read again
_BETWEEN_NOTES = 1.0
_MOST_ANSWERS = 20
Show = Callable[["Sight"], None]
Live = Callable[..., Iterator["Sight"]]
"""Takes what is known of connections, and a port with which they leave."""


@hiding(*ONLY_WRITTEN)
@click.command(
    "observe",
    epilog="""\b
Examples:
  ipmasq-agent observe
  ipmasq-agent observe --verdict masquerade --to 8.8.8.0/24 --protocol udp -o json
  ipmasq-agent observe --last 20 --pod default/client
  ipmasq-agent observe --was 192.168.10.100:40254
  ipmasq-agent observe --was 192.168.10.100:40254 --record /var/log/ipmasq --at 14:03:11
""",
)
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with new ones after --last.  [default without it]"
)
@click.option(
    "--last",
    type=click.IntRange(0),
    metavar="N",
    help="Show up to N that were made before: of the record, else of those that there are now.",
)
@click.option("--pod", metavar="[NAMESPACE/]NAME", help="Only those of this pod, or address.")
@click.option("--to", metavar="CIDR", help="Only those whose destination lies there.")
@click.option("--verdict", type=click.Choice(["masquerade", "keep"]), help="Only those.")
@click.option("--protocol", type=click.Choice(_PROTOCOLS), help="Only those.")
@click.option("--port", type=click.IntRange(1, 65535), help="Only those to this port.")
@click.option(
    "--pods",
    metavar="FILE",
    help="Names of pods: what `kubectl get pods -A -o json` prints, or lines `IP NAMESPACE/NAME`. "
    "Without it the API is asked about this node's, where there are credentials.",
)
@click.option(
    "--was", metavar="ADDRESS:PORT", help="Tell which pod has this address and port of the node."
)
@click.option(
    "--at", metavar="TIME", help="Which one had it then, by the record: 14:03:11, or with a date."
)
@record_option
@node_options
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="As columns, or as one object a line.",
)
def command(
    follow: bool,
    last: int | None,
    pod: str | None,
    to: str | None,
    verdict: str | None,
    protocol: str | None,
    port: int | None,
    pods: str | None,
    was: str | None,
    at: str | None,
    output: str,
    **options: Any,
) -> int:
    """Show connections as they are made, with their source before and after.

    With each the pod, the destination, as which address and port it left the node, the verdict
    and what decides. Ctrl-C ends it and tells how many there were, and how many were missed.
    --was ends with 1 where nobody has, or had, that address and port.
    """
    from ipmasq_agent.answers.observed import Wanted
    from ipmasq_agent.cli.questions import at_work
    from ipmasq_agent.cli.wiring import backend_choice

    settings = settings_of(options)
    record = settings.record
    wanted = Wanted(pod, _prefix(to), verdict, protocol, port)
    if at is not None and (was is None or record is None):
        raise UsageError(
            "--at is about the record, and about one address and port",
            remedy="give --was ADDRESS:PORT and --record FILE with it",
        )
    choice = backend_choice(settings)
    show = _as_json if output == "json" else _Columns().show
    try:
        plane, others = at_work(choice, settings)
        about = _About(plane, _Names(pods, settings), wanted)
        live = partial(_live, plane, others)
        if was is not None:
            return _was(was, at, record, live, about, show)
        # Of those that keep their source there is no record.
        earlier = partial(_earlier, live, None if verdict == "keep" else record, last or 0)
        if last is None or follow:
            return _follow(plane, earlier, about, show)
        for seen in earlier(about):
            show(seen)
        return 0
    finally:
        choice.close()


def _prefix(text: str | None) -> Prefix | None:
    from ipmasq_agent.policy.addresses import parse_address, prefix_around

    if text is None:
        return None
    try:
        address, slash, length = text.partition("/")
        family, number = parse_address(address)
        bits = int(length) if slash else family.bits
        if not 0 <= bits <= family.bits:
            raise ValueError(f"{length} bits")
    except ValueError as cause:
        raise UsageError(
            f"--to: {text!r} is no prefix", remedy="write it like 10.0.0.0/8, or as an address"
        ) from cause
    return prefix_around(family, number, bits)


# -- what is known about a connection ---------------------------------------------------------


class _Names:
    """The names of pods, from a file or from the API, where they can be had."""

    def __init__(self, path: str | None, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self._due = 0.0
        self._known: Names = {}
        if path is None and not _have_credentials(settings):
            self._due = float("inf")
        self._read()

    def of(self, family: Family, address: int, *, likely: bool = False) -> str | None:
        """Return the name; the API is asked again about an address that likely is a pod's."""
        found = self._known.get((family, address))
        if found is None and likely and time.monotonic() > self._due:
            self._read()
            found = self._known.get((family, address))
        return found

    def _read(self) -> None:
        from ipmasq_agent.sources.pods import pods_of_file, pods_of_node

        if self._path is not None:
            self._known, self._due = pods_of_file(self._path), float("inf")
        elif self._due != float("inf"):
            self._due = time.monotonic() + _AGE_OF_NAMES
            try:
                self._known = pods_of_node(_node(self._settings), self._settings.kubeconfig)
            except SourceError as error:
                click.echo(f"note: pods are shown by their addresses: {error}", err=True)
                self._due = float("inf")


def _have_credentials(settings: Settings) -> bool:
    named = settings.kubeconfig or os.environ.get("KUBECONFIG")
    places = "/var/run/secrets/kubernetes.io/serviceaccount/token", "~/.kube/config"
    return bool(named) or any(os.path.exists(os.path.expanduser(place)) for place in places)


def _node(settings: Settings) -> str:
    from ipmasq_agent.sources.facts import node_name

    return node_name(settings.node_name)


class _About:
    """What is known of connections: names, and what decides, read again as it ages."""

    def __init__(self, plane: AnyPlane, names: _Names, wanted: Wanted) -> None:
        self._plane = plane
        self._names = names
        self._wanted = wanted
        self._rulings: dict[Family, Ruling | AgentError] = {}
        self._read_at = 0.0
        self._reason = lru_cache(maxsize=4096)(self._decided)

    def seen(self, moment: float | None, flow: Flow) -> Sight | None:
        """Return what is to be shown of a connection; None where it is not meant."""
        from ipmasq_agent.answers.observed import Sight

        if not self._wanted.by_flow(flow):
            return None
        source = self._names.of(flow.family, flow.source.address, likely=True)
        found = Sight(moment, flow, source, self._names.of(flow.family, flow.reached.address))
        if not self._wanted.by_pod(found):
            return None
        if time.monotonic() - self._read_at > _AGE_OF_RULES:
            self._read()
        # Ports and protocols decide nothing in our own rules: few answers serve very many.
        ends = flow.source.address, flow.reached.address
        return found._replace(reason=self._reason(flow.family, *ends, flow.translated))

    def _read(self) -> None:
        from ipmasq_agent.answers.impact import Ruling
        from ipmasq_agent.host.devices import egress_devices, list_devices
        from ipmasq_agent.host.routes import WaysOut
        from ipmasq_agent.planes.hook.read import read_hook
        from ipmasq_agent.policy.addresses import Family

        self._reason.cache_clear()
        plane, self._ways, self._own = self._plane, WaysOut(), list_devices().own
        egress = egress_devices()
        for family in Family:
            try:
                interpret = partial(plane.dialect.interpret, plane.recall(family))
                hook = read_hook(family, plane.our_base(family), egress)
                self._rulings[family] = Ruling(interpret, hook)
            except AgentError as error:
                self._rulings[family] = error
        self._read_at = time.monotonic()

    def _decided(self, family: Family, source: int, reached: int, translated: bool) -> str:
        from ipmasq_agent.answers.explain import EgressPath
        from ipmasq_agent.answers.observed import reason

        ruling = self._rulings[family]
        if isinstance(ruling, AgentError):
            return f"cannot be told: {ruling.message}"
        try:
            route = EgressPath(*self._ways.look_up(family, reached, source))
        except AgentError as error:
            return f"cannot be told: {error.message}"
        own = (family, source) in self._own
        return reason(ruling, source, reached, route, translated=translated, own=own)


# -- new ones ---------------------------------------------------------------------------------


def _follow(
    plane: AnyPlane, earlier: Callable[[_About], Iterator[Sight]], about: _About, show: Show
) -> int:
    """Show what is made from now on, until told to stop; what was before comes first."""
    from ipmasq_agent.planes.live import beginnings

    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        told.append(number)
        signal.signal(number, signal.default_int_handler)  # who insists is not kept waiting

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with closing(beginnings(plane)) as news:
        click.echo("connections as they are made; Ctrl-C ends it", err=True)
        began, count, shown, missed = time.monotonic(), 0, 0, 0
        for seen in earlier(about):
            show(seen)
        due, stopping = 0.0, False
        while True:
            if told and not stopping:
                news.stop()
                stopping = True
            some = news.read(0 if stopping else _TURN)
            if stopping and not some:
                break
            count += len(some)
            for moment, flow in some:
                if (seen_now := about.seen(moment, flow)) is not None:
                    show(seen_now)
                    shown += 1
            sys.stdout.flush()
            if not told and time.monotonic() > due and (now_missed := news.missed) != missed:
                click.echo(f"note: {now_missed} were missed: they came too fast", err=True)
                missed, due = now_missed, time.monotonic() + _BETWEEN_NOTES
        seconds, missed = time.monotonic() - began, news.missed
    click.echo(
        f"{count} connections seen, {shown} shown, {missed} missed, in {seconds:.1f} s with "
        f"{time.process_time():.1f} s of CPU time",
        err=True,
    )
    return 0


# -- earlier ones -----------------------------------------------------------------------------


def _live(
    plane: AnyPlane, others: Collection[AnyPlane], about: _About, port: int | None = None
) -> Iterator[Sight]:
    """Yield those that there are, on planes that were left too."""
    from ipmasq_agent.planes.live import live_flows

    found = (about.seen(None, flow) for flow in live_flows(plane, port, others))
    return (seen for seen in found if seen is not None)


def _earlier(live: Live, record: str | None, last: int, about: _About) -> Iterator[Sight]:
    """Yield the last ones of the record, or some of those that there are."""
    from ipmasq_agent.agent.record import recorded
    from ipmasq_agent.policy.flows import Flow

    if not last:
        return iter(())
    if record is None:
        return islice(live(about), last)
    found: deque[Sight] = deque(maxlen=last)
    for moment, what in recorded(record):
        if isinstance(what, Flow) and (seen := about.seen(moment, what)) is not None:
            found.append(seen)
    return iter(found)


def _was(
    was: str, at: str | None, record: str | None, live: Live, about: _About, show: Show
) -> int:
    """Show whose an address and port is now, or was at a time; 1 where it is nobody's."""
    from ipmasq_agent.policy.flows import parse_end

    try:
        family, end = parse_end(was)
    except ValueError as cause:
        raise UsageError(
            f"--was: {cause}", remedy="write it like 192.168.10.100:40254 or [2001:db8::1]:40254"
        ) from cause
    found: list[Sight] = []
    if at is None:
        for seen in live(about, end.port):
            if seen.flow.left_as == end and seen.flow.family is family:
                found.append(seen)
    if record is not None and not found:
        meant = _meant(at) if at else (time.time(),) * 2
        found = _then(record, end.shown(family), *meant, about)
    for seen in found[:_MOST_ANSWERS]:
        show(seen)
    if len(found) > _MOST_ANSWERS:
        click.echo(f"note: and {len(found) - _MOST_ANSWERS} more", err=True)
    if not found:
        when = f"is recorded with it by {at}" if at else "leaves the node with it now"
        click.echo(f"{was}: nobody {when}", err=True)
        if record is None:
            click.echo(
                "  → for what was before, have the agent record it: `run --record FILE`", err=True
            )
    return 0 if found else 1


def _then(record: str, end: str, first: float, last: float, about: _About) -> list[Sight]:
    """Return who had an end from ``first`` on and before ``last``, the newest first.

    Of each protocol and destination those are: the latest by ``first``, and all after it.
    """
    from ipmasq_agent.agent.record import begins, recorded

    since = begins(record)
    if since is None or last <= since:
        told = "is empty" if since is None else f"begins at {_shown(since)}"
        raise SourceError(f"who had it then is not known: the record {record} {told}")
    had: dict[tuple[int, Any], list[Sight]] = {}
    missed, anew = 0, since
    for when, what in recorded(record, end):
        if when >= last:
            continue
        if what is None:
            anew = when
        elif isinstance(what, int):
            missed += what
        elif (seen := about.seen(when, what)) is not None:
            of_these = had.setdefault((what.protocol, what.reached), [])
            if when <= first:
                of_these.clear()
            of_these.append(seen._replace(reason="as recorded"))
    found = [(seen.moment or 0.0, seen) for of_these in had.values() for seen in of_these]
    if missed:
        click.echo(f"note: {missed} connections before that are not in the record", err=True)
    if anew > min((moment for moment, _ in found), default=since):
        text = f"note: up to {_shown(anew)} nobody recorded for a while: who had it then is missing"
        click.echo(text, err=True)
    return [seen for _, seen in sorted(found, key=itemgetter(0), reverse=True)]


def _meant(text: str) -> tuple[float, float]:
    """Return when what a text names begins and ends: a second, a minute or a day.

    A time of day is the latest one, by the local clock.
    """
    now = datetime.now().astimezone()
    text = text.replace(" ", "T")
    day, _, clock = text.rpartition("T")
    try:
        if "-" not in text.partition("T")[0]:
            day, clock = now.date().isoformat(), text
            moment = datetime.fromisoformat(f"{day}T{text}").astimezone()
            if moment > now:
                moment -= timedelta(days=1)
        else:
            moment = datetime.fromisoformat(text).astimezone()
    except ValueError as cause:
        raise UsageError(
            f"--at: {text!r} is no time",
            remedy="write it like 14:03:11 or 2026-11-27T14:03:11, with Z at its end for UTC",
        ) from cause
    colons = re.split("[Z+-]", clock)[0].count(":") if day else -1
    whole = {-1: timedelta(days=1), 0: timedelta(hours=1), 1: timedelta(minutes=1)}
    return moment.timestamp(), (moment + whole.get(colons, timedelta(seconds=1))).timestamp()


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")


# -- how they are shown -----------------------------------------------------------------------


def _as_json(seen: Sight) -> None:
    import json

    sys.stdout.write(json.dumps(seen.as_data()) + "\n")


_COLOURS = {"masquerade": "yellow", "keep": "green"}
_LEAST_WIDTH, _WIDE = 12, 48  # of a cell: on a small terminal, and on none
_NARROW = 96


class _Columns:
    """Lines with columns, which fit into a terminal; whole, where it is none."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._colours = self._terminal and "NO_COLOR" not in os.environ
        self._widths = [4, 12, 12, 12]

    def show(self, seen: Sight) -> None:
        """Print a connection."""
        *cells, verdict, reason = seen.cells()
        room = shutil.get_terminal_size().columns if self._terminal else 0
        # As which address it left says the verdict too, if need be.
        narrow = 0 < room < _NARROW
        moment = "-" if seen.moment is None else _clock(seen.moment)
        moment = moment[:8].ljust(8) if narrow else moment.ljust(12)
        taken = len(moment) + len("  icmpv6  →  as ") + (0 if narrow else len(" masquerade"))
        most = max((room - taken) // 3, _LEAST_WIDTH) if room else _WIDE
        for number, cell in enumerate(cells):
            self._widths[number] = min(max(self._widths[number], len(cell)), most)
            if room:
                cells[number] = _cropped(cell, self._widths[number])
        protocol, source, destination, left_as = (
            cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)
        )
        line = f"{moment} {protocol} {source} → {destination} as {left_as}"
        if not narrow:
            verdict = verdict.ljust(10)
            left = room - len(line) - len(verdict) - 2 if room else len(reason)
            line += f" {self._coloured(verdict, verdict)}"
            if left >= _LEAST_WIDTH or not room:
                line += f" {_cropped(reason, left)}"
        else:
            line = self._coloured(line, verdict)
        sys.stdout.write(line.rstrip() + "\n")

    def _coloured(self, text: str, verdict: str) -> str:
        return click.style(text, fg=_COLOURS[verdict.strip()]) if self._colours else text


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%H:%M:%S.%f")[:12]


def _cropped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"

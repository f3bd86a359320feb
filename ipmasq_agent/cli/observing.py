"""Looks at connections for ``observe``: those that are made, that there are, and that were."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import lru_cache, partial
from itertools import islice
from operator import attrgetter
from types import FrameType
from typing import Any

import click

from ipmasq_agent.agent.record import begins, recorded
from ipmasq_agent.answers.explain import Ruling
from ipmasq_agent.answers.observed import Sight, Wanted, reason
from ipmasq_agent.cli import output
from ipmasq_agent.cli.options import Settings, parsed
from ipmasq_agent.cli.questions import Here
from ipmasq_agent.errors import AgentError, SourceError, UsageError
from ipmasq_agent.host.devices import list_devices
from ipmasq_agent.host.routes import WaysOut
from ipmasq_agent.planes.live import beginnings, live_flows
from ipmasq_agent.planes.plane import AnyPlane
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import Flow, parse_end
from ipmasq_agent.sources import pods
from ipmasq_agent.sources.facts import node_name

_TURN = 0.2  # seconds until Ctrl-C is noticed
_AGE_OF_RULES, _AGE_OF_NAMES = 5.0, 10.0  # seconds, after which they are read again
_BETWEEN_NOTES = 1.0
_MOST_ANSWERS = 20
_CREDENTIALS = "/var/run/secrets/kubernetes.io/serviceaccount/token", "~/.kube/config"
Show = Callable[[Sight], None]


# -- what is known about a connection ---------------------------------------------------------


class Names:
    """The names of pods, from a file or from the API, where they can be had."""

    def __init__(self, path: str | None, settings: Settings) -> None:
        self._settings = settings
        self._known = pods.pods_of_file(path) if path is not None else {}
        named = settings.kubeconfig or os.environ.get("KUBECONFIG")
        asks = named or any(os.path.exists(os.path.expanduser(place)) for place in _CREDENTIALS)
        self._due = 0.0 if path is None and asks else float("inf")
        self._read()

    def of(self, family: Family, address: int, *, likely: bool = False) -> str | None:
        """Return the name; the API is asked again about an address that likely is a pod's."""
        if likely and (family, address) not in self._known:
            self._read()
        return self._known.get((family, address))

    def _read(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _AGE_OF_NAMES
        node = node_name(self._settings.node_name)
        try:
            self._known = pods.pods_of_node(node, self._settings.kubeconfig)
        except SourceError as error:
            output.remark("note", [f"pods are shown by their addresses: {error}"])
            self._due = float("inf")


class About:
    """What is known of connections: names, and what decides, read again as it ages."""

    def __init__(self, node: Here, names: Names, wanted: Wanted) -> None:
        self._node = node
        self._names = names
        self._wanted = wanted
        self._rulings: dict[Family, Ruling | AgentError] = {}
        self._read_at = 0.0
        self._reason = lru_cache(maxsize=4096)(self._decided)

    def live(self, port: int | None = None) -> Iterator[Sight]:
        """Yield those that there are, on planes that were left too."""
        flows = live_flows(self._node.plane, port, self._node.others)
        return filter(None, (self.seen(None, flow) for flow in flows))

    def seen(self, moment: float | None, flow: Flow) -> Sight | None:
        """Return what is to be shown of a connection; None where it is not meant."""
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
        self._reason.cache_clear()
        plane, self._ways, self._own = self._node.plane, WaysOut(), list_devices().own
        now = Here(plane, [])
        for family in Family:
            try:
                interpret = partial(plane.dialect.interpret, plane.recall(family))
                self._rulings[family] = Ruling(interpret, now.hook(family))
            except AgentError as error:
                self._rulings[family] = error
        self._read_at = time.monotonic()

    def _decided(self, family: Family, source: int, reached: int, translated: bool) -> str:
        ruling = self._rulings[family]
        if isinstance(ruling, AgentError):
            return f"cannot be told: {ruling.message}"
        try:
            route = self._ways.look_up(family, reached, source)
        except AgentError as error:
            return f"cannot be told: {error.message}"
        own = (family, source) in self._own
        return reason(ruling, source, reached, route, translated=translated, own=own)


# -- new ones ---------------------------------------------------------------------------------


def follow_new(plane: AnyPlane, before: Iterable[Sight], about: About, show: Show) -> None:
    """Show what is made from now on, until told to stop; what was before comes first."""
    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        told.append(number)
        signal.signal(number, signal.default_int_handler)  # who insists is not kept waiting

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with closing(beginnings(plane)) as news:
        click.echo("connections as they are made; Ctrl-C ends it", err=True)
        began, count, shown, missed = time.monotonic(), 0, 0, 0
        for seen in before:
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
            for new in filter(None, (about.seen(moment, flow) for moment, flow in some)):
                show(new)
                shown += 1
            sys.stdout.flush()
            if not told and time.monotonic() > due and news.missed != missed:
                missed, due = news.missed, time.monotonic() + _BETWEEN_NOTES
                output.remark("note", [f"{missed} were missed: they came too fast"])
        seconds, missed = time.monotonic() - began, news.missed
    click.echo(
        f"{count} connections seen, {shown} shown, {missed} missed, in {seconds:.1f} s with "
        f"{time.process_time():.1f} s of CPU time",
        err=True,
    )


# -- earlier ones -----------------------------------------------------------------------------


def earlier(about: About, record: str | None, last: int) -> Iterator[Sight]:
    """Yield the last ones of the record, or some of those that there are."""
    if last and record is None:
        yield from islice(about.live(), last)
    elif last and record is not None:
        lines = ((when, what) for when, what in recorded(record) if isinstance(what, Flow))
        yield from deque(filter(None, (about.seen(*line) for line in lines)), maxlen=last)


def who(was: str, at: str | None, record: str | None, about: About, show: Show) -> int:
    """Show whose an address and port is now, or was at a time; 1 where it is nobody's."""
    like = "192.168.10.100:40254 or [2001:db8::1]:40254"
    family, end = parsed("--was", parse_end, was, like)
    found: list[Sight] = []
    if at is None:
        now = about.live(end.port)
        found = [seen for seen in now if (seen.flow.left_as, seen.flow.family) == (end, family)]
    if record is not None and not found:
        meant = _meant(at) if at else (time.time(),) * 2
        found = _then(record, end.shown(family), *meant, about)
    for seen in found[:_MOST_ANSWERS]:
        show(seen)
    if len(found) > _MOST_ANSWERS:
        output.remark("note", [f"and {len(found) - _MOST_ANSWERS} more"])
    if not found:
        when = f"is recorded with it by {at}" if at else "leaves the node with it now"
        click.echo(f"{was}: nobody {when}", err=True)
        if record is None:
            click.echo(
                "  → for what was before, have the agent record it: `run --record FILE`", err=True
            )
    return 0 if found else 1


def _then(record: str, end: str, first: float, last: float, about: About) -> list[Sight]:
    """Return who had an end from ``first`` on and before ``last``, the newest first.

    Of each protocol and destination those are: the latest by ``first``, and all after it.
    """
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
    found = [seen for of_these in had.values() for seen in of_these]
    found.sort(key=attrgetter("moment"), reverse=True)
    notes = [f"{missed} connections before that are not in the record"] if missed else []
    if anew > (found[-1].moment or 0.0 if found else since):
        until = f"up to {_shown(anew)} nobody recorded for a while"
        notes.append(f"{until}: who had it then is missing")
    output.remark("note", notes)
    return found


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


def as_json(seen: Sight) -> None:
    """Print a connection as an object."""
    sys.stdout.write(json.dumps(seen.as_data()) + "\n")


_COLOURS = {"masquerade": "yellow", "keep": "green"}
_LEAST_WIDTH, _WIDE = 12, 48  # of a cell: on a small terminal, and on none
_REST = len("14:03:11.123 icmpv6  →  as ")


class Columns:
    """Lines with columns, cut where a terminal ends; whole, where it is none."""

    def __init__(self) -> None:
        self._room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self._widths = [4, 12, 12, 12]

    def show(self, seen: Sight) -> None:
        """Print a connection."""
        *cells, verdict, reason = seen.cells()
        most = _WIDE if self._room is None else max((self._room - _REST) // 3, _LEAST_WIDTH)
        widths = [min(max(pair), most) for pair in zip(self._widths, map(len, cells), strict=True)]
        if self._room is not None:
            cells = list(map(_cropped, cells, widths))
        self._widths = widths
        protocol, source, destination, left_as = map(str.ljust, cells, widths)
        moment = "-" if seen.moment is None else f"{datetime.fromtimestamp(seen.moment):%T.%f}"[:12]
        line = f"{moment:12} {protocol} {source} → {destination} as {left_as} {verdict:10} {reason}"
        if self._room is not None:
            line = output.styled(_cropped(line, self._room).rstrip(), _COLOURS[verdict])
        sys.stdout.write(line.rstrip() + "\n")


def _cropped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"

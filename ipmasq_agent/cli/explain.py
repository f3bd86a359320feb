"""``explain``: would packets to this destination be masqueraded, and why?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ipmasq_agent.cli.options import OWN, SOCKET, hiding, settings_of, shared
from ipmasq_agent.cli.output import emit, output_option, remark
from ipmasq_agent.errors import UsageError
from ipmasq_agent.policy.addresses import Family, parse_address
from ipmasq_agent.policy.cidrs import parse_cidr

if TYPE_CHECKING:
    from ipmasq_agent.agent.intent import Intent
    from ipmasq_agent.answers.explain import Explanation
    from ipmasq_agent.cli.questions import Here

_SHOWN = 50  # answers in the text
_MOST = 4096  # answers at all
_REMEDY = (
    "give an address, like 10.10.1.200, a prefix, like 10.10.0.0/16, or a name that resolves here"
)
_SOON = 2.0  # seconds after which a wait for a name server is told


@hiding("adopt", "jump_position", "bpf_flows")
@click.command(
    "explain",
    epilog="""\b
Examples:
  ipmasq-agent explain 10.10.1.200
  ipmasq-agent explain 8.8.8.8 --src 172.20.0.5 -o json
  ipmasq-agent explain 10.0.0.0/8
  ipmasq-agent explain localhost
""",
)
@click.argument("destination", metavar="DST")
@click.option("--src", metavar="IP", help="Ask for packets of this source only.")
@shared(*OWN, SOCKET)
@output_option
def command(destination: str, src: str | None, output: str, **options: Any) -> None:
    """Say what happens to the source of a packet to DST, by the kernel's own rules.

    DST is an address; a prefix, of which parts with other answers are told by themselves; or a
    name, with an answer for each address that it has here. Each names the rule that decides,
    the line of the document it comes from, and the address that the receiver sees.
    """
    from itertools import islice

    from ipmasq_agent.answers.explain import merged, together
    from ipmasq_agent.cli.questions import here
    from ipmasq_agent.cli.wiring import try_intent

    settings = settings_of(options)
    asked = _asked(destination, src)
    intent, error = try_intent(settings)
    if error is not None:
        remark("warning", [f"no document to compare with: {error}"])
    with here(settings, intent) as node:
        found = (
            answer
            for family, first, last in asked
            for answer in merged(_answers(node, family, first, last, src, intent))
        )
        answers = list(islice(found, _MOST + 1))
        beside = node.left + node.unread
    if len(answers) > _MOST:
        raise UsageError(
            f"{destination} has more than {_MOST} parts with answers of their own",
            remedy="ask about a longer prefix; `list` and `compare` show whole policies",
        )
    remark("warning", beside)
    if _is_address(destination):
        emit(answers[0].as_data(), output, answers[0].as_text)
    else:
        emit(together(destination, answers), output, lambda: _text(destination, answers))


def _text(asked: str, answers: Sequence[Explanation]) -> str:
    lines = [answer.as_text() for answer in answers[:_SHOWN]]
    if [answer.destination for answer in answers] != [asked]:
        verdicts = " or ".join(dict.fromkeys(str(answer.verdict) for answer in answers))
        lines.insert(0, f"{asked}: {verdicts}")
    if len(answers) > _SHOWN:
        lines.append(f"... and {len(answers) - _SHOWN} more; -o json shows them all")
    return "\n".join(lines)


def _is_address(text: str) -> bool:
    """Whether it is meant as one; no name is of digits and dots alone, or has a colon."""
    return re.fullmatch(r"[0-9.]*|[^/]*[:%][^/]*", text) is not None


def _asked(text: str, src: str | None) -> list[tuple[Family, int, int]]:
    """Return the ranges of destinations that are asked about.

    Raises:
        UsageError: there are none.
    """
    try:
        of = parse_address(src)[0] if src is not None else None
        if "%" in text:
            raise ValueError(f"{text!r} has a zone, and which device it is for the routes to say")
        if _is_address(text):
            family, address = parse_address(text)
            spans = [(family, address, address)]
        elif "/" in text:
            try:
                prefix = parse_cidr(text)
            except ValueError as cause:  # it goes on from the text
                raise ValueError(f"{text!r} {cause}") from cause
            spans = [(prefix.family, prefix.first, prefix.last)]
        else:
            addresses = map(parse_address, _resolved(text))
            spans = [(family, address, address) for family, address in addresses]
    except ValueError as cause:
        raise UsageError(f"{cause}", remedy=_REMEDY) from cause
    meant = [span for span in spans if of in (None, span[0])]
    if not meant:
        raise UsageError(f"{text} and {src} are of two address families")
    return meant


def _resolved(name: str) -> list[str]:
    """Return the addresses of a name, as programs on this host see them.

    Raises:
        UsageError: it has none.
    """
    import socket
    import threading

    waiting = threading.Timer(_SOON, click.echo, [f"resolving {name} ..."], {"err": True})
    waiting.daemon = True
    waiting.start()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as cause:
        why = cause.strerror if isinstance(cause, OSError) else "it cannot be a name"
        raise UsageError(
            f"{name!r} is no address, and cannot be resolved: {why}",
            remedy=_REMEDY,
        ) from cause
    finally:
        waiting.cancel()
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


def _answers(
    node: Here, family: Family, first: int, last: int, src: str | None, intent: Intent | None
) -> Iterator[Explanation]:
    """Yield the answers for a range of destinations, those of each stretch of a route apart."""
    from ipmasq_agent.answers.explain import Ruling, explain
    from ipmasq_agent.host.routes import WaysOut, turns

    plane = node.plane
    starts = [first, *(turns(family, first, last) if first != last else ())]
    if len(starts) > _MOST:
        raise UsageError(
            f"the node has {len(starts)} routes there", remedy="ask about a longer prefix"
        )
    source = parse_address(src)[1] if src is not None else None
    # One address is asked about: a set of a hundred thousand is not read for it.
    state = plane.read_at(family, first) if first == last else node.read(plane, family)
    now, held = node.now(family, state)
    ruling = Ruling(partial(now.dialect.interpret, held), node.hook(family, now))
    wanted, why = None, {}
    if intent is not None and family in intent.config.families:
        wanted = intent.policy(plane, family)
    elif intent is not None:
        why = {"unmeant": f"{family.value} is not managed without --enable-ipv6"}
    ways = WaysOut()
    for start, following in zip(starts, (*starts[1:], last + 1), strict=True):
        route = ways.look_up(family, start, source)
        yield from explain(ruling, (start, following - 1), src, route, wanted, **why)

"""Each language's texts, for two nodes of both families and two autonomous systems of routers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ipmasq_agent.answers.route_formats import FORMATS
from ipmasq_agent.answers.routes import needed, parse_node, parse_peer, routers, speakers

FOLDER = Path(__file__).parent
GOLDEN = (".cisco", ".junos", ".gobgp")
NODES = (
    "k8s-ctr=192.168.10.100,fd00:192:168:10::100,172.20.0.0/24,fd00:172:20::/64",
    "k8s-w1=192.168.10.101,fd00:192:168:10::101,172.20.1.0/24,172.20.128.0/25,fd00:172:20:1::/64",
)
PEERS = ("192.168.10.200=64513", "fd00:192:168:10::200=64513", "192.168.10.201")


def texts() -> Iterator[tuple[str, str]]:
    """Yield the name of a file and what is to stand in it."""
    needs, _ = needed([parse_node(text) for text in NODES], {})
    peers = [parse_peer(text, 64512) for text in PEERS]
    for name, language in FORMATS.items():
        lines = (line for need in needs for line in language.static(need.routes))
        yield f"static.{name}", "".join(f"{line}\n" for line in lines)
        for node in speakers(needs, 64512, peers) if language.node is not None else ():
            assert language.node is not None
            yield f"{node.name}.{name}", "".join(f"{line}\n" for line in language.node(node))
        for router in routers(needs, 64512, peers) if language.router is not None else ():
            assert language.router is not None
            text = "".join(f"{line}\n" for line in language.router(router))
            yield f"as{router.asn}.{name}", text

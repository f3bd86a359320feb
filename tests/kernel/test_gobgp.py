"""A node that speaks BGP by the configuration that is written for GoBGP, between two routers."""

from __future__ import annotations

import json
from pathlib import Path

from ipmasq_agent.answers.route_formats import FORMATS
from ipmasq_agent.answers.routes import needed, parse_node, parse_peer, speakers
from tests.netns import Namespace
from tests.waiting import wait_until

NODE = "k8s-w1=192.168.10.101,172.20.1.0/24"
ROUTERS = ("192.168.10.200=64513", "192.168.10.201=64514")
ROUTER = """
[global.config]
  as = {asn}
  router-id = "{address}"
[[neighbors]]
[neighbors.config]
  neighbor-address = "192.168.10.101"
  peer-as = 64512
[neighbors.transport.config]
  passive-mode = true
"""


def start(ns: Namespace, config: Path, text: str) -> None:
    """Start gobgpd, and wait until it can be asked."""
    config.write_text(text)
    ns.popen(["gobgpd", "--config-file", str(config), "--api-hosts", "127.0.0.1:50051"])
    asked = ["gobgp", "neighbor"]
    wait_until(lambda: "64" in ns.run(asked, check=False).stdout, f"{config.name} has neighbours")


def known(ns: Namespace) -> dict[str, str]:
    """Return the IPv4 routes that a speaker has, with the next hop of each."""
    told = json.loads(ns.run(["gobgp", "global", "rib", "-j"]).stdout)
    return {
        prefix: attribute["nexthop"]
        for prefix, paths in told.items()
        for attribute in paths[0]["attrs"]
        if "nexthop" in attribute
    }


def test_what_one_router_says_is_not_told_to_the_other(tmp_path: Path) -> None:
    needs, _ = needed([parse_node(NODE)], {})
    peers = [parse_peer(text, 64512) for text in ROUTERS]
    [speaker] = speakers(needs, 64512, peers)
    language = FORMATS["gobgp"]
    assert language.node is not None
    text = "\n".join(language.node(speaker))
    with (
        Namespace("lan") as lan,
        Namespace("node") as node,
        Namespace("one") as one,
        Namespace("other") as other,
    ):
        lan.run(["ip", "link", "add", "br0", "type", "bridge"])
        lan.run(["ip", "link", "set", "br0", "up"])
        for number, (ns, last) in enumerate(((node, 101), (one, 200), (other, 201))):
            ns.veth("eth0", lan, f"port{number}")
            ns.address("eth0", f"192.168.10.{last}/24")
            lan.run(["ip", "link", "set", f"port{number}", "master", "br0"])
        for ns, peer in ((one, peers[0]), (other, peers[1])):
            config = ROUTER.format(asn=peer.asn, address=peer)
            start(ns, tmp_path / str(peer), config)
        # A default route and what looks like pods of others: neither is the node's to pass on.
        for prefix in ("0.0.0.0/0", "172.20.2.0/24"):
            one.run(["gobgp", "global", "rib", "add", prefix])
        start(node, tmp_path / "node", text)
        heard = ["gobgp", "neighbor", str(peers[0]), "adj-in", "-j"]
        wait_until(
            lambda: "172.20.2.0" in node.run(heard, check=False).stdout, "the node hears of it"
        )
        [add] = [line for line in text.splitlines() if line.startswith("# once it runs: ")]
        node.run(add.partition(": ")[2].split())
        own = {"172.20.1.0/24": "192.168.10.101"}
        wait_until(lambda: own.items() <= known(one).items(), "the first hears of the pods")
        wait_until(lambda: own.items() <= known(other).items(), "the other hears of them")
        # Announced last, so all that was to be told before has come.
        assert known(other) == own
        assert list(known(node)) == ["172.20.1.0/24"]

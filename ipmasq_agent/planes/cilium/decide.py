"""What Cilium's eBPF masquerading decides, in its ip-masq-agent mode.

Its program looks a packet's destination up in a map of prefixes: one that is found keeps
the pod's address, as does one in the native-routing CIDR and, with native routing, one at
another node of the cluster; all else is masqueraded (snat_v4_needs_masquerade, bpf/lib/nat.h).
With routing through a tunnel, its default, packets to other nodes are masqueraded, as those
do not go through the tunnel; packets to their pods do, from a device where nothing is
masqueraded. Link-local prefixes are entries of the map like any other. Which pods, devices and
ports it does that for is not in the map: ``Guards`` and ``Action`` of a policy made here say
nothing.

Only read, never written: the map is Cilium's.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ipmasq_agent.errors import ConfigError
from ipmasq_agent.planes.interpretation import Decider
from ipmasq_agent.policy.addresses import Family, Prefix
from ipmasq_agent.policy.cidrs import parse_listed
from ipmasq_agent.policy.decisions import DecisionMap, Entry, Stated, Verdict, entry_of_prefix
from ipmasq_agent.policy.model import FamilyPolicy

MAP_NAMES: Mapping[Family, str] = {
    Family.IPV4: "cilium_ipmasq_v4",
    Family.IPV6: "cilium_ipmasq_v6",
}
HEADER = "IP PREFIX/ADDRESS"
# What may stand around the prefixes: the header, what is said of an empty map, and what
# kubectl says when it chooses a container.
_BESIDE = (HEADER, "No entries found.", "Defaulted container ")
# As Go's strconv.ParseBool has it.
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_SHOWN = 20
NOT_IN_THE_MAP = (
    "not in the map, and not compared: Cilium masquerades packets of this node's pods only, "
    "and out of its devices only"
)


@dataclass(frozen=True, slots=True)
class Exempt:
    """What keeps a pod's address without an entry in the map.

    Attributes:
        native_routing: destinations that are taken as routable with a pod's address.
        nodes: addresses of the cluster's nodes.
        tunnelled: where the pods of other nodes are that are reached through a tunnel.
    """

    native_routing: tuple[Prefix, ...] = ()
    nodes: frozenset[tuple[Family, int]] = frozenset()
    tunnelled: tuple[Prefix, ...] = ()


NOTHING = Exempt()


def policy_of(
    family: Family, prefixes: Iterable[Prefix], exempt: Exempt, place: str
) -> FamilyPolicy:
    """Return what Cilium decides with these entries.

    Args:
        family: whose packets are meant; what is of the other one is passed over.
        prefixes: what the map holds.
        exempt: what keeps a pod's address beside that.
        place: the name of the map or of the listing that ``prefixes`` come from.
    """
    entries: list[Entry[Verdict]] = []
    for prefix in exempt.native_routing:
        if prefix.family is family:
            key = Stated(f"{native_routing_key(family)}: {prefix}")
            entries.append(entry_of_prefix(prefix, Verdict.NON_MASQUERADE, key))
    for prefix in exempt.tunnelled:
        if prefix.family is family:
            pods = Stated(f"pods of the cluster, through the tunnel: {pool_key(family)}")
            entries.append(entry_of_prefix(prefix, Verdict.NON_MASQUERADE, pods))
    # The longest match is what a look-up in the map finds.
    for prefix in sorted(prefixes, key=lambda p: -p.length):
        if prefix.family is family:
            reason = Decider(place, None, str(prefix), prefix)
            entries.append(entry_of_prefix(prefix, Verdict.NON_MASQUERADE, reason))
    node = Stated("address of a node of the cluster")
    for its_family, address in exempt.nodes:
        if its_family is family:
            entries.append(Entry(address, address, Verdict.NON_MASQUERADE, node))
    rest = Decider(place, None, "no entry covers it")
    return FamilyPolicy(DecisionMap(family, entries, Verdict.MASQUERADE, rest))


# -- cilium-config --------------------------------------------------------------------------


def native_routing_key(family: Family) -> str:
    """Return the key of cilium-config that holds the family's native-routing CIDR."""
    return f"{family.value}-native-routing-cidr"


def pool_key(family: Family) -> str:
    """Return the key of cilium-config that holds what the pod CIDRs of all nodes are taken from."""
    return f"cluster-pool-{family.value}-cidr"


def prefixes_at(settings: Mapping[str, str], key_of: Callable[[Family], str]) -> list[Prefix]:
    """Return the prefixes that cilium-config has under a key of each family.

    Raises:
        ConfigError: one of them cannot be read.
    """
    prefixes = []
    for family in Family:
        # Helm writes a list with commas or spaces, as viper splits it.
        for text in settings.get(key_of(family), "").replace(",", " ").split():
            try:
                prefixes.append(parse_listed(text))
            except ValueError as cause:
                raise ConfigError([f"{key_of(family)}: {text!r} {cause}"]) from cause
    return prefixes


def tunnels(settings: Mapping[str, str]) -> bool:
    """Whether cilium-config routes through a tunnel, as it does by default.

    ``routing-mode`` has said so since Cilium 1.13, and ``tunnel: disabled`` otherwise before.
    """
    before = "native" if settings.get("tunnel", "").strip() == "disabled" else "tunnel"
    return settings.get("routing-mode", before).strip() != "native"


def masquerades_to_nodes(settings: Mapping[str, str]) -> bool:
    """Whether cilium-config has packets to other nodes masqueraded, which is not its default."""
    return settings.get("enable-remote-node-masquerade", "").strip() in _TRUE


def oddities(settings: Mapping[str, str], families: Sequence[Family]) -> Iterator[str]:
    """Yield what cilium-config says that makes the map mean less than it seems to."""
    switches = {
        "enable-bpf-masquerade": "iptables may masquerade instead",
        "enable-ip-masq-agent": "its map is not looked at",
    }
    for family in families:
        name = f"enable-{family.value}-masquerade"
        switches[name] = f"it masquerades nothing of {family.value}"
    for key, meaning in switches.items():
        if settings.get(key, "").strip() in _FALSE:
            yield f"cilium-config says {key}: false, so that {meaning}"


# -- listings -------------------------------------------------------------------------------


def parse_listing(text: str, name: str) -> tuple[Prefix, ...]:
    """Read what ``cilium-dbg bpf ipmasq list`` printed, as text or with ``-o json``.

    The text has a header and one prefix a line, both families together. The JSON is a
    list of prefixes, in older releases of Go's net.IPNet objects with the mask in
    base64; keys of an object are taken as prefixes too.

    Args:
        text: what was printed; nothing where the map is empty.
        name: what to call it in messages.

    Raises:
        ConfigError: with one line for each entry that is no prefix.
    """
    if text.lstrip()[:1] in ("[", "{") or text.strip() == "null":
        items = [(f"entry {number}", item) for number, item in enumerate(_json(text, name), 1)]
    else:
        items = [
            (str(number), line.split()[0])
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.strip().startswith(_BESIDE)
        ]
    prefixes: list[Prefix] = []
    problems: list[str] = []
    for place, item in items:
        try:
            prefixes.append(parse_listed(_as_text(item)))
        except ValueError as cause:
            problems.append(f"{name}:{place}: {str(item)[:60]!r} {cause}")
    if len(problems) > _SHOWN:
        problems[_SHOWN:] = [f"... and {len(problems) - _SHOWN} more of the kind"]
    if problems:
        raise ConfigError(problems)
    return tuple(prefixes)


def _json(text: str, name: str) -> Iterable[Any]:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise ConfigError([f"{name}: this is not the JSON of a listing: {cause}"]) from cause
    return read if isinstance(read, list) else (read or {}).keys()


def _as_text(item: Any) -> str:
    """Return the text of an entry, which older releases print as an address and a mask."""
    if isinstance(item, dict) and {"IP", "Mask"} <= item.keys():
        try:
            mask = base64.b64decode(str(item["Mask"]), validate=True)
        except binascii.Error as cause:
            raise ValueError("has a mask that is not base64") from cause
        bits = "".join(f"{byte:08b}" for byte in mask)
        if "01" in bits:
            raise ValueError("has a mask with holes")
        return f"{item['IP']}/{bits.count('1')}"
    if not isinstance(item, str):
        raise ValueError("is not a prefix")
    return item

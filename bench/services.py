"""The rules that kube-proxy keeps in the nat table of a node, for so many services."""

from __future__ import annotations

from collections.abc import Iterator


def kube_proxy(rules: int) -> Iterator[str]:
    """Yield the lines of a restore with about ``rules`` rules, in chains of two or three.

    Each service has a line in KUBE-SERVICES, a chain of its own and two endpoints; of all
    that only KUBE-POSTROUTING is reached from POSTROUTING.
    """
    services = rules // 7
    yield "*nat"
    for chain in ("KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"):
        yield f":{chain} - [0:0]"
    for number in range(services):
        yield from (f":{chain} - [0:0]" for chain in (_service(number), *_endpoints(number)))
    yield '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    yield ('-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING')
    yield "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN"
    yield "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000"
    yield "-A KUBE-POSTROUTING -j MASQUERADE"
    yield "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000"
    for number in range(services):
        yield from _rules_of(number)
    yield "COMMIT"


def _service(number: int) -> str:
    return f"KUBE-SVC-{number:016X}"


def _endpoints(number: int) -> list[str]:
    return [f"KUBE-SEP-{number:015X}{which}" for which in range(2)]


def _rules_of(number: int) -> Iterator[str]:
    chain, endpoints = _service(number), _endpoints(number)
    said = f'-m comment --comment "shop/service-{number}:http'
    place = f"{number // 256 % 256}.{number % 256}"
    yield (
        f'-A KUBE-SERVICES -d 10.{96 + number // 65536}.{place}/32 -p tcp {said} cluster IP" '
        f"-m tcp --dport 80 -j {chain}"
    )
    share = "-m statistic --mode random --probability 0.5"
    yield f'-A {chain} {said}" {share} -j {endpoints[0]}'
    yield f'-A {chain} {said}" -j {endpoints[1]}'
    for which, endpoint in enumerate(endpoints):
        address = f"172.{16 + which}.{place}"
        yield f'-A {endpoint} -s {address}/32 {said}" -j KUBE-MARK-MASQ'
        yield f'-A {endpoint} -p tcp {said}" -m tcp -j DNAT --to-destination {address}:8080'

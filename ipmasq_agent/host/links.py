"""The devices through which traffic leaves the node."""

from __future__ import annotations

import fcntl
import fnmatch
import os
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915  # include/uapi/linux/sockios.h: the IPv4 address of a device
# Devices of pods and of container networks: they have addresses but lead to pods.
_INWARD = (
    *("lo", "docker*", "cni*", "cbr*", "flannel*", "cali*", "cilium*", "lxc*", "veth*"),
    *("kube-*", "nodelocaldns", "virbr*", "br-*", "weave*", "vxlan*", "genev*", "tunl*"),
)


def egress_devices() -> tuple[str, ...]:
    """Return the devices that carry a node address or a default route, sorted by name.

    Bridges, loopback and the devices of pod networks are left out, unless a default
    route uses them.
    """
    routed = _default_route_devices()
    addressed = {
        name
        for _, name in socket.if_nameindex()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in _INWARD)
        and not os.path.isdir(f"/sys/class/net/{name}/bridge")
        and (_has_ipv4(name) or name in _global_ipv6_devices())
    }
    return tuple(sorted(routed | addressed))


def _default_route_devices() -> set[str]:
    """Return the devices of default routes (Documentation/networking/proc_net_*.rst)."""
    devices = set()
    for line in _lines("/proc/net/route")[1:]:
        words = line.split()
        if words[1] == words[7] == "00000000":
            devices.add(words[0])
    for line in _lines("/proc/net/ipv6_route"):
        words = line.split()
        if words[0] == "0" * 32 and words[1] == "00" and words[-1] != "lo":
            devices.add(words[-1])
    return devices


def _global_ipv6_devices() -> set[str]:
    lines = (line.split() for line in _lines("/proc/net/if_inet6"))
    return {words[5] for words in lines if words[3] == "00"}  # scope 00 is global


def _has_ipv4(device: str) -> bool:
    request = struct.pack("256s", device.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            fcntl.ioctl(probe, _SIOCGIFADDR, request)
        except OSError:
            return False  # EADDRNOTAVAIL: the device has no IPv4 address
    return True


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []  # a kernel without IPv6

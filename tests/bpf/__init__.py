"""Tests of the eBPF programs on packets made by scapy, by BPF_PROG_TEST_RUN.

They may not import the package: the layout of maps, the packets that must come out and the
numbers of outcomes are said here a second time.
"""

from __future__ import annotations

from scapy.config import conf

# Before any layer is imported: packets are only made here, so nobody needs the machine's routes.
conf.route_autoload = False
conf.route6_autoload = False

"""Word of commits to nf_tables, by whomever, as they happen.

Of each commit the kernel sends one message of all that it changed, or many, and then one of
the new generation (net/netfilter/nf_tables_api.c, nf_tables_gen_notify). That one is enough
to know when to look, and a filter in the kernel keeps the others from us: somebody's fifty
thousand rules wake nobody fifty thousand times.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
import sys

from ipmasq_agent.netlink import core as netlink
from ipmasq_agent.netlink import nft_numbers as nft
from ipmasq_agent.netlink.nf import NETLINK_NETFILTER, SUBSYSTEM

_GROUP = 1 << 7 - 1  # NFNLGRP_NFTABLES, as a bit
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_LOAD_HALF, _JUMP_IF_EQUAL, _RETURN = 0x28, 0x15, 0x06  # BPF_LD|H|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_TYPE_AT = 4  # in struct nlmsghdr


class Commits:
    """What nf_tables tells from now on, in this network namespace.

    Raises:
        OSError: it may not be listened to.
    """

    def __init__(self) -> None:
        # A filter loads in the order of the network what the message has in that of the machine.
        kind = (SUBSYSTEM << 8 | nft.NFT_MSG_NEWGEN).to_bytes(2, sys.byteorder)
        program = array.array(
            "B",
            _INSTRUCTION.pack(_LOAD_HALF, 0, 0, _TYPE_AT)
            + _INSTRUCTION.pack(_JUMP_IF_EQUAL, 0, 1, int.from_bytes(kind, "big"))
            + _INSTRUCTION.pack(_RETURN, 0, 0, 0xFFFFFFFF)
            + _INSTRUCTION.pack(_RETURN, 0, 0, 0),
        )
        address, size = program.buffer_info()
        self._socket = netlink.connect(NETLINK_NETFILTER, _GROUP)
        try:
            filtered = struct.pack("HP", size // _INSTRUCTION.size, address)  # struct sock_fprog
            self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, filtered)
        except OSError:
            self._socket.close()
            raise

    def wait(self, seconds: float) -> bool:
        """Return whether anybody has committed since this was asked before."""
        self._socket.settimeout(seconds)
        try:
            self._take()
        except TimeoutError:
            return False
        self._socket.setblocking(False)
        try:
            while True:
                self._take()
        except BlockingIOError:
            return True

    def _take(self) -> None:
        try:
            self._socket.recv(1)  # what it says is of no interest
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more than there was room for
                raise

    def close(self) -> None:
        """Hold nothing any more."""
        self._socket.close()

"""Flows of the node itself from before the programs were there: no pod gets their ports."""

from __future__ import annotations

import logging
import socket
import time
from ipaddress import ip_address

from ipmasq_agent.errors import KernelReadError
from ipmasq_agent.logs import event
from ipmasq_agent.netlink.sockets import ConnectedSocket, list_connected
from ipmasq_agent.planes.bpf import layout
from ipmasq_agent.planes.bpf.layout import FLOWS, FlowState
from ipmasq_agent.planes.bpf.maps import PinnedMaps

# As life.h has them, of what packets both ways were seen of.
_TCP_ESTABLISHED, _TCP_CLOSING, _UDP_BOTH_WAYS = 5 * 24 * 3600, 120, 120
_ANSWERED = FlowState.SEEN_OUTWARD | FlowState.SEEN_INWARD | FlowState.CONFIRMED


def record(maps: PinnedMaps) -> None:
    """Record what connected sockets of the node are part of, on a kernel that lists them.

    Once ``index_flows`` has run they keep their ports too, whatever the policy allows.
    """
    try:
        sockets = list_connected()
    except KernelReadError as cause:
        words = "connections of the node may meet a pod's port until they send something"
        event(logging.WARNING, words, error=cause)
        return
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC))
    table, room = maps[FLOWS], maps[FLOWS].capacity
    for one in sockets:
        if _stays_here(one) or room == 0:
            continue
        local = layout.flow_end(one.family, *one.local)
        remote = layout.flow_end(one.family, *one.remote)
        state, life = _ANSWERED, _UDP_BOTH_WAYS
        if one.protocol == socket.IPPROTO_TCP:
            life = _TCP_CLOSING if one.ending else _TCP_ESTABLISHED
            state |= (FlowState.FIN_OUTWARD | FlowState.FIN_INWARD) * one.ending
        key = layout.pack_flow_key(one.family, one.protocol, remote, local)
        room -= table.add(key, layout.pack_flow(local, 0, state, now + life))


def _stays_here(one: ConnectedSocket) -> bool:
    """Whether packets go no further than the node or its link, where nothing is masqueraded."""
    local, remote = (ip_address(one.family.show(n)) for n, _ in (one.local, one.remote))
    return local.is_loopback or remote.is_loopback or remote.is_link_local

"""A program run a million times, each time on another packet.

BPF_PROG_TEST_RUN repeats a program on one packet, and what the program has written into it
stays there: after the first time a packet is translated already. So a small program of ours is
run in its place. It writes the next frame of a deck over the packet, takes away the marks that
a program may have left on it, and goes on as the program under test (a tail call). What that
itself takes is measured with a program that does nothing, and subtracted.

The packets belong to a socket, as the kernel makes them so (net/bpf/test_run.c).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

from ipmasq_agent.bench.testrun.frames import SIZE
from ipmasq_agent.bpf.maps import BpfMap
from ipmasq_agent.bpf.syscall import BpfCommand, asked_to, bpf
from ipmasq_agent.errors import BenchError

GOES_ON = 0xFFFFFFFF
"""What a program returns that leaves a packet to the next one: TC_ACT_UNSPEC."""
_ARRAY, _ARRAY_OF_PROGRAMS = 2, 3  # BPF_MAP_TYPE_...
_OF_TC = 3  # BPF_PROG_TYPE_SCHED_CLS
# map_type, key_size, value_size, max_entries
_MAP = struct.Struct("=4I")
# prog_type, insn_cnt, insns, license
_PROGRAM = struct.Struct("=IIQQ")
# prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration,
# ctx_size_in, ctx_size_out, ctx_in, ctx_out
_RUN = struct.Struct("=4I2Q4I2Q")
_NUMBER = struct.Struct("=I")
# struct __sk_buff: its size, and where some of its fields are.
_CONTEXT, _MARK, _IFINDEX, _TC_INDEX = 192, 8, 40, 44
_NO_TAIL_CALL = 77


class Ran(NamedTuple):
    """What came of running a program.

    Attributes:
        ns: that it took each time.
        verdict: that it returned at last.
        given: the frame that it then had.
        frame: as it was afterwards.
    """

    ns: float
    verdict: int
    given: bytes
    frame: bytes


def run(program: int, frame: bytes, ifindex: int, times: int = 1) -> Ran:
    """Run a program of tc.

    Args:
        program: its descriptor.
        frame: the packet.
        ifindex: the device by which it comes or goes; one of this network namespace.
        times: how often, always on the same packet, as the program has left it.
    """
    data = ctypes.create_string_buffer(frame, len(frame))
    after = ctypes.create_string_buffer(len(frame))
    context = ctypes.create_string_buffer(_CONTEXT)
    _NUMBER.pack_into(context, _IFINDEX, ifindex)
    at = [ctypes.addressof(each) for each in (data, after, context)]
    packed = _RUN.pack(
        *(program, 0, len(frame), len(frame), *at[:2], times, 0), *(_CONTEXT, 0, at[2], 0)
    )
    request = ctypes.create_string_buffer(packed, _RUN.size)
    with asked_to("run a program"):
        bpf(BpfCommand.PROG_TEST_RUN, request)
    verdict, took = (_RUN.unpack(request)[field] for field in (1, 7))
    return Ran(float(took), verdict, frame, after.raw)


class Deck(AbstractContextManager["Deck"]):
    """Frames that come one after the other, and again from the first on.

    Args:
        frames: of ``SIZE`` bytes each.
        port_at: where each has its source port.
        step: by how much that grows, each time that the frame comes. Its checksum is not
            made anew: programs take it for right, as they should, and change it by difference.
    """

    def __init__(self, frames: Sequence[bytes], port_at: int, step: int = 0) -> None:
        self._frames, self._shown = frames, 0
        with ExitStack() as stack:
            deck = stack.enter_context(_map(_ARRAY, SIZE, len(frames)))
            numbers = b"".join(map(_NUMBER.pack, range(len(frames))))
            deck.fill(numbers, b"".join(frames), len(frames))
            position = stack.enter_context(_map(_ARRAY, 4, 1))
            self._target = stack.enter_context(_map(_ARRAY_OF_PROGRAMS, 4, 1))
            code = _replay(len(frames), deck.fd, position.fd, self._target.fd, port_at, step)
            self._replay, self._nothing = _load(code), -1
            stack.callback(os.close, self._replay)
            self._nothing = _load([_MOVE(0, value=-1), _EXIT])
            stack.callback(os.close, self._nothing)
            self._stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def play(self, program: int, ifindex: int, packets: int) -> Ran:
        """Run a program on so many packets, once on each; ports are those before a step.

        Raises:
            BenchError: the kernel does not go on from our program to this one.
        """
        idle = self._run(self._nothing, ifindex, packets)
        ran = self._run(program, ifindex, packets)
        return ran._replace(ns=ran.ns - idle.ns)

    def _run(self, program: int, ifindex: int, packets: int) -> Ran:
        self._target.update(_NUMBER.pack(0), _NUMBER.pack(program))
        ran = run(self._replay, self._frames[0], ifindex, packets)
        self._shown += packets
        if ran.verdict == _NO_TAIL_CALL:
            raise BenchError("a program of ours cannot go on as the one that is measured")
        return ran._replace(given=self._frames[(self._shown - 1) % len(self._frames)])


# -- the program, by hand, as nodes have no compiler -------------------------------------------


class _Code:
    """An instruction: fields of struct bpf_insn, include/uapi/linux/bpf.h."""

    def __init__(self, operation: int) -> None:
        self._operation = operation

    def __call__(self, to: int = 0, of: int = 0, at: int = 0, value: int = 0) -> bytes:
        return struct.pack("=BBhi", self._operation, of << 4 | to, at, value)


_MOVE, _COPY, _ADD = _Code(0xB7), _Code(0xBF), _Code(0x07)
_READ_32, _WRITE_32, _READ_16, _WRITE_16 = map(_Code, (0x61, 0x63, 0x69, 0x6B))
_UNLESS_EQUAL, _IF_EQUAL, _TO_BIG_ENDIAN = _Code(0x55), _Code(0x15), _Code(0xDC)
_CALL, _EXIT = _Code(0x85), _Code(0x95)()
_LOOKUP, _STORE_BYTES, _TAIL_CALL = 1, 9, 12  # BPF_FUNC_...
_STACK = 10


def _address(to: int, descriptor: int, *, of_value: bool = False) -> bytes:
    """Put a map's address into a register, or that of the one value of an array."""
    # BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE
    return _Code(0x18)(to, 2 if of_value else 1, value=descriptor) + _Code(0)()


def _replay(
    count: int, deck: int, position: int, target: int, port_at: int, step: int
) -> list[bytes]:
    next_port = [
        _READ_16(1, 0, port_at),
        _TO_BIG_ENDIAN(1, value=16),
        _ADD(1, value=step),
        _TO_BIG_ENDIAN(1, value=16),
        _WRITE_16(0, 1, port_at),
    ]
    go_on = [
        *(next_port if step else ()),
        # bpf_skb_store_bytes(skb, 0, frame, SIZE, 0)
        _COPY(1, 6),
        _MOVE(2, value=0),
        _COPY(3, 0),
        _MOVE(4, value=SIZE),
        _MOVE(5, value=0),
        _CALL(value=_STORE_BYTES),
        # skb->mark = skb->tc_index = 0
        _MOVE(1, value=0),
        _WRITE_32(6, 1, _MARK),
        _WRITE_32(6, 1, _TC_INDEX),
        # bpf_tail_call(skb, target, 0)
        _COPY(1, 6),
        _address(2, target),
        _MOVE(3, value=0),
        _CALL(value=_TAIL_CALL),
    ]
    length = sum(map(len, go_on)) // len(_EXIT)
    return [
        _COPY(6, 1),
        # The number of this frame, and in its place that of the next one.
        _address(7, position, of_value=True),
        _READ_32(1, 7),
        _WRITE_32(_STACK, 1, -4),
        _ADD(1, value=1),
        _UNLESS_EQUAL(1, at=1, value=count),
        _MOVE(1, value=0),
        _WRITE_32(7, 1),
        _address(1, deck),
        _COPY(2, _STACK),
        _ADD(2, value=-4),
        _CALL(value=_LOOKUP),
        _IF_EQUAL(0, at=length, value=0),
        *go_on,
        _MOVE(0, value=_NO_TAIL_CALL),
        _EXIT,
    ]


def _map(kind: int, value_size: int, entries: int) -> BpfMap:
    with asked_to("make a map"):
        return BpfMap(bpf(BpfCommand.MAP_CREATE, _MAP.pack(kind, 4, value_size, entries)))


def _load(instructions: Sequence[bytes]) -> int:
    code = ctypes.create_string_buffer(b"".join(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    count = (len(code) - 1) // len(_EXIT)
    at = ctypes.addressof(code), ctypes.addressof(licence)
    with asked_to("load a program"):
        return bpf(BpfCommand.PROG_LOAD, _PROGRAM.pack(_OF_TC, count, *at))

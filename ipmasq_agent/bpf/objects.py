"""What bpf(2) gives descriptors of (maps, programs, links): opened, pinned, asked about, run.

What the kernel refuses is a HostError, where nothing else is said.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipmasq_agent.bpf.syscall import BpfCommand, asked_to, bpf, refused

READ_ONLY = 1 << 3  # BPF_F_RDONLY
_PATH = struct.Struct("=QII")  # pathname, bpf_fd, file_flags
_INFO = struct.Struct("=IIQ")  # bpf_fd, info_len, info
_BY_ID = struct.Struct("=III")  # id, next_id, open_flags
# prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration
_TEST_RUN = struct.Struct("=IIIIQQII")
_NUMBER = struct.Struct("=4xI")  # how the information about an object of any kind begins
_PROGRAM = struct.Struct("=4xI56x16s")  # id and name, of struct bpf_prog_info
_MAPS = struct.Struct("=52xIQ")  # nr_map_ids and map_ids, of the same
_MOST_MAPS = 64  # of a program: MAX_USED_MAPS, include/linux/bpf_verifier.h
_SHORTEST_PACKET = 64


def open_path(path: Path, flags: int = 0) -> int:
    """Return a descriptor of what is pinned at a path.

    Raises:
        OSError: nothing is, or it may not be opened.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(BpfCommand.OBJ_GET, _PATH.pack(ctypes.addressof(name), 0, flags))


def get_pinned(path: Path) -> int | None:
    """Return a descriptor of what is pinned at a path; None where nothing is."""
    try:
        return open_path(path)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise refused(f"open {path}", cause) from cause


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Hold a descriptor for as long as it is needed."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def by_id(command: BpfCommand, number: int) -> Iterator[int]:
    """Open an object by its number for as long as it is needed; as ``open_number``."""
    with closing(open_number(command, number)) as descriptor:
        yield descriptor


def open_number(command: BpfCommand, number: int) -> int:
    """Return a descriptor of an object by its number: ``PROG_GET_FD_BY_ID`` and the like.

    Raises:
        OSError: it is gone, or only CAP_SYS_ADMIN may.
    """
    return bpf(command, _BY_ID.pack(number, 0, 0))


def pin(descriptor: int, path: Path) -> None:
    """Pin a map, a program or a link at a path of a bpf file system."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    with asked_to(f"pin {path}"):
        bpf(BpfCommand.OBJ_PIN, _PATH.pack(ctypes.addressof(name), descriptor, 0))


def object_info(descriptor: int, size: int) -> bytes:
    """Return the first ``size`` bytes of what the kernel tells about an object."""
    info = ctypes.create_string_buffer(size)
    with asked_to("ask about a map or program"):
        request = _INFO.pack(descriptor, size, ctypes.addressof(info))
        bpf(BpfCommand.OBJ_GET_INFO_BY_FD, request)
    return info.raw


def number_of(descriptor: int) -> int:
    """Return the number of a map, a program or a link, by which those of its kind differ."""
    (number,) = _NUMBER.unpack(object_info(descriptor, _NUMBER.size))
    return int(number)


def program_info(descriptor: int) -> tuple[int, str]:
    """Return number and name of a program; the number tells it from every other one."""
    number, name = _PROGRAM.unpack(object_info(descriptor, _PROGRAM.size))
    return number, name.rstrip(b"\0").decode(errors="replace")


def maps_of(program: int) -> list[int]:
    """Return the numbers of the maps that a program uses."""
    numbers = ctypes.create_string_buffer(4 * _MOST_MAPS)
    asked = _MAPS.pack(_MOST_MAPS, ctypes.addressof(numbers))
    info = ctypes.create_string_buffer(asked, len(asked))
    with asked_to("ask which maps a program uses"):
        request = _INFO.pack(program, len(asked), ctypes.addressof(info))
        bpf(BpfCommand.OBJ_GET_INFO_BY_FD, request)
    count, _ = _MAPS.unpack(info)
    return list(struct.unpack_from(f"={min(count, _MOST_MAPS)}I", numbers))


def run_program(descriptor: int, packet: bytes = bytes(_SHORTEST_PACKET)) -> int:
    """Run a program of tc once, on a packet or on an empty one, and return what it returned."""
    held = ctypes.create_string_buffer(packet, len(packet))
    data = ctypes.addressof(held)
    packed = _TEST_RUN.pack(descriptor, 0, len(packet), 0, data, 0, 1, 0)
    request = ctypes.create_string_buffer(packed, _TEST_RUN.size)
    with asked_to("run a program"):
        bpf(BpfCommand.PROG_TEST_RUN, request)
    return int(_TEST_RUN.unpack(request)[1])

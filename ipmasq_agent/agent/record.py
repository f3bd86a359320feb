"""The record of translations: which pod had which address and port of the node, and when.

A line for each translated connection as it was made::

    2026-11-27T14:03:11.123Z udp 172.20.0.5:40254 8.8.8.8:53 192.168.10.100:40254

The moment, the protocol, who it was, whom that reached, and as whom. Of ICMP the identifier is
the port. ``... missed 12`` says that of so many before that moment there are no lines, and
``... listening`` that nobody listened just before it. Files are bounded, and so is their number:
FILE is the newest, then FILE.1, FILE.2...
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ipmasq_agent.answers.observed import utc
from ipmasq_agent.errors import SourceError
from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.flows import End, Flow, parse_end, protocol_number

_MISSED, _LISTENING = "missed", "listening"
_NOTES = b" missed ", b" listening\n"


class RecordFile:
    """The file that is written, and the older ones.

    Args:
        path: of the newest.
        size: in bytes, that a file has at most.
        count: how many files there are at most.
    """

    def __init__(self, path: str, size: int, count: int) -> None:
        self._path = path
        self._size = size
        self._count = count
        self._file: int | None = None
        self._length = 0

    def write(self, text: str) -> None:
        """Append whole lines.

        Raises:
            OSError: they are not there, nor any part of them that a reader takes for a line.
        """
        data = text.encode()
        try:
            file = self._opened(len(data))
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
            self._length += len(data)
        except OSError:
            self._give_up()
            raise

    def close(self) -> None:
        """Hold no file open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self, more: int) -> int:
        """Return the newest file, another one where this many bytes more are too many."""
        if self._file is None:
            self._file = self._open()
        if self._length and self._length + more > self._size:
            self._rotate()
            self._file = self._open()
        return self._file

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600)
        self._length = os.fstat(file).st_size
        return file

    def _rotate(self) -> None:
        self.close()
        for number in range(self._count - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(_older(self._path, number - 1), _older(self._path, number))
        if self._count == 1:
            os.unlink(self._path)

    def _give_up(self) -> None:
        """Take back what was written in part; the next line begins a file that is opened anew."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._length)
            with contextlib.suppress(OSError):
                self.close()
            self._file = None


def _older(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def lines(begun: Iterable[tuple[float, Flow]]) -> str:
    """Return a line for each that is translated."""
    return "".join(
        f"{_second(int(moment))}.{int(moment % 1 * 1000):03d}Z {flow.protocol_name} "
        f"{_shown(flow.family, flow.source)} {_shown(flow.family, flow.reached)} "
        f"{_shown(flow.family, flow.left_as)}\n"
        for moment, flow in begun
        if flow.translated
    )


def missed_line(moment: float, count: int) -> str:
    """Return what says that so many translations, or other connections, were not seen."""
    return f"{utc(moment, 'milliseconds')} {_MISSED} {count}\n"


def listening_line(moment: float) -> str:
    """Return what says that connections are listened to from a moment on."""
    return f"{utc(moment, 'milliseconds')} {_LISTENING}\n"


@lru_cache(maxsize=4)
def _second(moment: int) -> str:
    return utc(moment, "seconds").removesuffix("Z")


def _shown(family: Family, end: End) -> str:
    address = _address(family, end.address)  # as ``End.shown`` has it, and remembered
    return f"{address}:{end.port}" if end.port else address.strip("[]")


@lru_cache(maxsize=4096)
def _address(family: Family, address: int) -> str:
    text = family.show(address)
    return f"[{text}]" if family is Family.IPV6 else text


def begins(path: str) -> float | None:
    """Return the moment from which on a record tells; None where it is empty.

    Raises:
        SourceError: there is none that can be read.
    """
    return next((moment for moment, _ in recorded(path)), None)


def recorded(path: str, left_as: str | None = None) -> Iterator[tuple[float, Flow | int | None]]:
    """Yield what a record holds, the oldest first: translations, and how many were missed.

    None is where somebody began to listen.

    Args:
        path: of the newest file.
        left_as: only those that left as this address and port.

    Raises:
        SourceError: there is none that can be read.
    """
    end = None if left_as is None else f" {left_as}\n".encode()
    with contextlib.ExitStack() as stack:
        try:
            for file in reversed(_files(path, stack)):
                for line in file:
                    if end is None or line.endswith(end) or any(note in line for note in _NOTES):
                        yield from _read(line.decode(errors="replace"))
        except OSError as cause:
            raise SourceError(f"the record {path} cannot be read: {cause}") from cause


def _files(path: str, stack: contextlib.ExitStack) -> list[BinaryIO]:
    """Return the files of a record, the newest first, each once, whatever they are called later.

    What its writer moves on meanwhile is met again as the next one, and is not passed over.
    """
    suffixes = (each.suffix[1:] for each in Path(path).parent.glob(f"{Path(path).name}.*"))
    numbers = {int(text) for text in suffixes if text.isdecimal()}
    files: dict[int, BinaryIO] = {}
    for number in sorted({0, 1, *numbers, *(number + 1 for number in numbers)}):
        with contextlib.suppress(FileNotFoundError):
            file = open(_older(path, number), "rb")  # noqa: SIM115  the stack closes it
            stack.enter_context(file)
            files.setdefault(os.fstat(file.fileno()).st_ino, file)
    if not files:
        raise SourceError(
            f"there is no record at {path}",
            remedy="have the agent write one: `run --record FILE`; an agent in a container has it "
            "there, so ask in there: `kubectl exec`",
        )
    return list(files.values())


def _read(line: str) -> Iterator[tuple[float, Flow | int | None]]:
    """Yield what a line says; nothing where it is none, as somebody may have cut it off."""
    words = line.split()
    with contextlib.suppress(ValueError, KeyError, IndexError):
        moment = datetime.fromisoformat(words[0]).timestamp()
        if words[1] == _MISSED:
            yield moment, int(words[2])
            return
        if words[1] == _LISTENING:
            yield moment, None
            return
        (family, source), (one, reached), (other, left_as) = map(parse_end, words[2:5])
        number = protocol_number(words[1])
        if one is other is family:
            yield moment, Flow(family, number, source, reached, left_as, reached)

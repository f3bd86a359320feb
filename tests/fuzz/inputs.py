"""Inputs: those that are kept for each target, and what becomes of them by chance.

In ``corpus/TARGET`` are examples of what a target reads, and all inputs that ever broke it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from random import Random

CORPUS = Path(__file__).parent / "corpus"

# What has meaning to some reader: ends, quotes, numbers at the edges of types, other codings.
TOKENS = (
    *(b"\0", b"\n", b"\r\n", b'"', b"'", b"\\", b"-", b"--", b"!", b" ", b"\t", b":", b",", b"/"),
    *(b"{", b"}", b"[", b"]", b"&a ", b"*a", b"<<: *a", b"? ", b"|\n ", b"---\n", b"!!binary "),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xff",
        b"\xc3\xa9",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b"\x1b[",
    ),
    *(b"null", b"true", b"1e400", b"-1", b"0", b"NaN", b"Infinity", b"9" * 30, b"9" * 5000, b"{}"),
    *(b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x00\x04", b"\x04\x00", b"\x08\x00", b"\x80" * 4),
    *(b"10.0.0.0/8", b"::/0", b"fd00::1", b"0.0.0.0", b"x" * 300, b"[" * 2000, b"{a: " * 300),
)
# A value of JSON, or of YAML that looks like it, and others that may stand in its place.
_VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
_VALUES = (
    *(b"null", b"true", b"0", b"-1", b"1e999", b"9" * 25, b"[]", b"{}", b"[null]", b'{"a": 1}'),
    *(b'""', b'"x"', b'"ipv6"', b'"::1"', b'"10.0.0.1"', b'"\\ud800"', b'"\\u0000"', b'"a\\nb"'),
)


@cache
def kept(name: str) -> tuple[bytes, ...]:
    """Return the inputs that are kept for a target, with an empty one."""
    return (b"", *(path.read_bytes() for path in sorted((CORPUS / name).iterdir())))


def mutated(data: bytes, random: Random, other: bytes = b"", longest: int = 1 << 20) -> bytes:
    """Return an input with a few changes, perhaps with a part of another one."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(changed) + 1)
        end = min(at + random.choice((0, 1, 1, 2, 4, 16, 200)), len(changed))
        match random.randrange(9):
            case 0:
                changed[at:end] = random.choice(TOKENS)
            case 1:
                changed[at:at] = random.choice(TOKENS)
            case 2:
                del changed[at:end]
            case 3:
                changed[at:end] = changed[at:end] * random.choice((2, 2, 3, 100))
            case 4 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 5 if at < len(changed):
                changed[at] = random.choice((0, 1, 3, 4, 5, 127, 128, 255))
            case 6 | 7 if value := _VALUE.search(changed, at):
                changed[value.start() : value.end()] = random.choice(_VALUES)
            case _ if other:
                start = random.randrange(len(other))
                changed[at:end] = other[start : start + random.choice((4, 16, 64, 1000))]
            case _:
                changed[at:end] = random.randbytes(end - at)
    return bytes(changed[:longest])

"""Long sequences kept small: plain columns, and objects that are made when asked for.

A hundred thousand entries as objects take 50 MB and slow down every pass of the garbage
collector; as columns of numbers they take 2 MB and are compared by memcmp.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import TypeVar, overload

from ipmasq_agent.policy.addresses import Family

T = TypeVar("T", covariant=True)

_LONGEST_SLICE = 4096


def column(family: Family, addresses: Sequence[int]) -> Sequence[int]:
    """Return addresses of one family in the smallest form; two of a family compare fast.

    An IPv4 address takes four bytes; those of IPv6 have no such form and stay integers.
    """
    if family is Family.IPV4:
        return array("I", addresses)  # four bytes wherever Linux runs
    return list(addresses)


def differing(
    keys: tuple[Sequence[int], Sequence[int]], *more: tuple[Sequence[object], Sequence[object]]
) -> tuple[list[int], list[int]]:
    """Return the positions of the rows that only the one has, and of those of the other alone.

    Args:
        keys: a column of each: it ascends, and holds no number twice.
        more: further columns of the two, each pair of one type.
    """
    left, right = keys
    gone: list[int] = []
    come: list[int] = []
    i = j = 0
    while i < len(left) and j < len(right):
        mine, its = left[i], right[j]
        if mine == its and (run := alike(i, j, keys, *more)):
            i, j = i + run, j + run
            continue
        if mine <= its:
            gone.append(i)
            i += 1
        if its <= mine:
            come.append(j)
            j += 1
    return [*gone, *range(i, len(left))], [*come, *range(j, len(right))]


def alike(i: int, j: int, *columns: tuple[Sequence[object], Sequence[object]]) -> int:
    """Return how many rows are the same in both, from one's row ``i`` and the other's ``j`` on.

    Slices are compared, which is done in C: of a growing size while they are the same, then of
    halves. What a slice copies is little, however long the two are.
    """
    limit = min(len(columns[0][0]) - i, len(columns[0][1]) - j)
    run, size, growing = 0, 1, True
    while size and run < limit:
        stop = min(run + size, limit)
        if all(a[i + run : i + stop] == b[j + run : j + stop] for a, b in columns):
            run = stop
        else:
            growing = False
        size = min(size * 2, _LONGEST_SLICE) if growing else size // 2
    return run


def common_ends(left: Sequence[object], right: Sequence[object]) -> tuple[int, int]:
    """Return how many items at the beginning and at the end are the same in both.

    Both are of one type.
    """
    head = alike(0, 0, (left, right))
    return head, alike(0, 0, (left[head:][::-1], right[head:][::-1]))


class Lazy(Sequence[T]):
    """A sequence whose items are made when asked for; a slice is a tuple of them."""

    __slots__ = ()

    @abstractmethod
    def _at(self, position: int) -> T:
        """Return the item of a position from 0, or raise IndexError."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...

    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(map(self._at, range(len(self))[index]))
        return self._at(index if index >= 0 else range(len(self))[index])


class Chained(Lazy[T]):
    """Sequences one after the other, read as one without a copy."""

    __slots__ = ("_ends", "_parts")

    def __init__(self, parts: Iterable[Sequence[T]]) -> None:
        self._parts = tuple(part for part in parts if len(part))
        self._ends = list(accumulate(map(len, self._parts)))

    def _at(self, position: int) -> T:
        number = bisect_right(self._ends, position)
        return self._parts[number][position - (self._ends[number - 1] if number else 0)]

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0


class Mapped(Lazy[T]):
    """What a function makes of each item of a column, made on access.

    With the ``__getitem__`` of a sequence it reads as some of its items, in another order.
    """

    __slots__ = ("_column", "_make")

    def __init__(self, make: Callable[[int], T], column: Sequence[int]) -> None:
        self._make = make
        self._column = column

    def _at(self, position: int) -> T:
        return self._make(self._column[position])

    def __iter__(self) -> Iterator[T]:
        return map(self._make, self._column)

    def __len__(self) -> int:
        return len(self._column)

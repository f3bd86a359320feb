"""A document as understood: what each key of it says or, where it is absent, stands for."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ipmasq_agent.policy.addresses import Family
from ipmasq_agent.policy.model import PortRange

if TYPE_CHECKING:
    import yaml

    from ipmasq_agent.config.reading import Reading

T = TypeVar("T")

DEFAULT_CIDR_LIMIT = 64


class Auto(enum.Enum):
    """Says that a value is to be taken from the host or the cluster."""

    AUTO = "auto"


AUTO = Auto.AUTO


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags that bear on what a document means, in the defaults of upstream.

    Attributes:
        cidr_limit: how many entries a document may have that sets no limit itself; None
            for as many as the data plane can hold.
    """

    enable_ipv6: bool = False
    nomasq_all_reserved_ranges: bool = False
    random_fully: bool = True
    to_ports: tuple[PortRange, ...] = ()
    cidr_limit: int | None = DEFAULT_CIDR_LIMIT


def _last(documents: Sequence[Sequence[T]]) -> T:
    return documents[-1][-1]


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What the values of a key are: how they are read, joined, shown and described.

    Attributes:
        schema: which values are of this kind, as a JSON Schema, as far as one can tell.
        read: returns the value of a node; None where it stands for the key's absence. What is
            wrong with it is noted in the reading, and what is returned then is not used.
        joined: returns what the values of several documents say together, of those that have
            one. Of a document they are several where its key is spelt in several ways or, in
            JSON, repeated.
        shown: returns a value as it would stand in a document.
        destinations: it lists some.
    """

    schema: Mapping[str, Any]
    read: Callable[[Reading, yaml.Node, str], T | None]
    joined: Callable[[Sequence[Sequence[T]]], T] = _last
    shown: Callable[[T], Any] = _as_it_is
    destinations: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Key(Generic[T]):
    """A key of the document.

    Attributes:
        name: its proper spelling.
        absent: what a document means that lacks it.
        default: how docs/document.md names what its absence means.
        upstream: ip-masq-agent has it too.
        default_of: the same as ``absent`` where that depends on flags and other keys.
    """

    name: str
    kind: Kind[T]
    absent: T
    meaning: str
    default: str = "none"
    upstream: bool = False
    default_of: Callable[[Config], T] | None = None

    def absence(self, config: Config) -> T:
        """Return what it means that the documents of ``config`` lack the key."""
        return self.absent if self.default_of is None else self.default_of(config)


@dataclass(frozen=True, slots=True)
class Config:
    """What documents say together, completed by the flags they were read with.

    Attributes:
        written: what the documents say themselves.
        mentioned: the keys that they have, if only with a null.
    """

    flags: Flags
    written: Mapping[Key[Any], Any] = field(default_factory=dict)
    mentioned: frozenset[Key[Any]] = field(default=frozenset(), compare=False)

    def __getitem__(self, key: Key[T]) -> T:
        if key in self.written:
            return cast(T, self.written[key])
        return key.absence(self)

    @property
    def families(self) -> tuple[Family, ...]:
        """The address families to manage."""
        return (Family.IPV4, Family.IPV6) if self.flags.enable_ipv6 else (Family.IPV4,)

"""Very many sockets that ask and are answered: each payload says who sent it, and who may get it.

Sockets stay in the namespace in which they are made, so one process speaks for all.
"""

from __future__ import annotations

import contextlib
import ipaddress
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.kernel.attacks.site import Plan
from tests.netns import Namespace
from tests.waiting import wait_until

PORT = 7777
SIZE = 32
"""Bytes of each payload."""
# Without anything that comes: longer than other work keeps this machine from it.
_PATIENCE = 30.0
# More could overflow the queue between two devices.
_AT_ONCE = 100
_ROOM = 8 << 20


@dataclass
class Asker:
    """A socket and its name, which its payloads begin with."""

    name: str
    socket: socket.socket
    asked: int = 0

    def payload(self) -> bytes:
        """Return what it asks now."""
        return f"{self.name} {self.asked}".encode().ljust(SIZE)

    def ask(self) -> bytes:
        """Send the next question; return it."""
        self.asked += 1
        self.socket.send(self.payload())
        return self.payload()


@dataclass
class Outcome:
    """What became of questions.

    Attributes:
        lost: the names of those without an answer.
        strayed: who got what was not for it.
    """

    lost: list[str] = field(default_factory=list)
    strayed: list[tuple[str, str]] = field(default_factory=list)


class Server(threading.Thread):
    """Sends everything back, and remembers where it came from; a context manager.

    Attributes:
        seen: of each name, with which addresses and ports it came, to which server.
    """

    def __init__(self, where: Namespace, addresses: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.seen: dict[str, set[tuple[str, int, int]]] = {}
        self.failure: Exception | None = None
        self._answers: dict[str, tuple[socket.socket, tuple[Any, ...], bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._ending, self._end = socket.socketpair()
        self._selector.register(self._ending, selectors.EVENT_READ, None)
        with where.entered():
            for number, address in enumerate(addresses):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    made = socket.socket(family, kind)
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    made.bind((address, PORT))
                    made.setblocking(False)
                    if kind == socket.SOCK_DGRAM:
                        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
                        self._selector.register(made, selectors.EVENT_READ, (self._answer, number))
                    else:
                        made.listen(4096)
                        self._selector.register(made, selectors.EVENT_READ, (self._accept, number))

    def run(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.data is None:
                        return
                    act, number = key.data
                    act(key.fileobj, number)
        except Exception as failure:  # for the test's own thread
            self.failure = failure

    def _answer(self, at: socket.socket, number: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, source = at.recvfrom(2048)
                self._note(at, data, source, number)
                at.sendto(data, source)

    def _accept(self, at: socket.socket, number: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted, source = at.accept()
                accepted.setblocking(False)

                def answer(
                    at: socket.socket, number: int, source: tuple[str, int] = source
                ) -> None:
                    try:
                        data = at.recv(1 << 16)
                    except BlockingIOError:
                        return
                    except OSError:
                        data = b""
                    if not data:
                        self._selector.unregister(at)
                        at.close()
                        return
                    self._note(at, data, source, number)
                    with contextlib.suppress(OSError):  # the other side may be gone
                        at.sendall(data)

                self._selector.register(accepted, selectors.EVENT_READ, (answer, number))

    def _note(self, at: socket.socket, data: bytes, source: tuple[Any, ...], number: int) -> None:
        name = data[:SIZE].decode().split()[0]
        host, port = str(ipaddress.ip_address(source[0])), source[1]
        self.seen.setdefault(name, set()).add((host, port, number))
        self._answers[name] = at, source, data[-SIZE:]

    def repeat(self, names: Iterable[str]) -> None:
        """Send the latest answers once more, before anything is asked."""
        for at, source, data in map(self._answers.__getitem__, names):
            if at.type == socket.SOCK_DGRAM:
                at.sendto(data, source)
            else:
                at.sendall(data)

    def hosts(self, names: Iterable[str]) -> Counter[str]:
        """Return from how many of these names each address came."""
        return Counter(host for name in names for host, _, _ in self.seen.get(name, ()))

    def shared(self) -> list[tuple[str, int, int]]:
        """Return ends with which more than one came to the same server."""
        count = Counter(end for ends in self.seen.values() for end in ends)
        return [end for end, times in count.items() if times > 1]

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.send(b"x")
        self.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        self._end.close()
        if self.failure is not None:
            raise self.failure


_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


@contextlib.contextmanager
def askers(
    where: Namespace,
    plan: Plan,
    kind: socket.SocketKind,
    named: Iterable[tuple[str, str, str]],
    *,
    own_port: int = 0,
) -> Iterator[list[Asker]]:
    """Make sockets that are connected to a server each.

    Args:
        where: their namespace.
        plan: whose addresses are meant.
        kind: of the sockets.
        named: of each its name, its own address, and that of its server.
        own_port: their own; none for any.
    """
    with contextlib.ExitStack() as stack:
        made: list[Asker] = []
        with where.entered():
            for name, address, server in named:
                one = stack.enter_context(socket.socket(plan.kind, kind))
                one.setblocking(False)
                # A port is picked when it connects, and may be others' to other servers.
                one.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                one.bind((address, own_port))
                with contextlib.suppress(BlockingIOError):
                    one.connect((server, PORT))
                made.append(Asker(name, one))
                if kind == socket.SOCK_STREAM and len(made) % _AT_ONCE == 0:
                    _connected(made[-_AT_ONCE:])
            if kind == socket.SOCK_STREAM:
                _connected(made)
        yield made


_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h


def _connected(connecting: list[Asker]) -> None:
    """Wait until all have been answered; who is not has no peer, and loses its questions."""
    with selectors.DefaultSelector() as selector:
        for one in connecting:
            selector.register(one.socket, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(_PATIENCE)
            if not ready:
                return
            for key, _ in ready:
                selector.unregister(key.fileobj)


def ask(them: Sequence[Asker], rounds: int = 1) -> Outcome:
    """Have all of them ask and be answered, some at once, so many times.

    It ends with the first ones that are not.
    """
    outcome = Outcome()
    with selectors.DefaultSelector() as selector:
        # All of them listen all the time: whoever gets what is another's shall say so.
        for one in them:
            selector.register(one.socket, selectors.EVENT_READ, one)
        for _ in range(rounds):
            for first in range(0, len(them), _AT_ONCE):
                outcome.lost += _ask(them[first : first + _AT_ONCE], selector, outcome.strayed)
                if outcome.lost:
                    return outcome
    return outcome


def hear(them: Sequence[Asker]) -> Outcome:
    """Have all of them get the latest answer, which is sent once more."""
    outcome = Outcome()
    with selectors.DefaultSelector() as selector:
        for one in them:
            selector.register(one.socket, selectors.EVENT_READ, one)
        waiting = {one.name: one.payload() for one in them}
        outcome.lost += _wait(waiting, selector, outcome.strayed)
    return outcome


def _ask(
    some: Sequence[Asker], selector: selectors.BaseSelector, strayed: list[tuple[str, str]]
) -> list[str]:
    """Ask some, and return who got no answer."""
    waiting: dict[str, bytes] = {}
    lost = []
    for one in some:
        try:
            waiting[one.name] = one.ask()
        except OSError:
            lost.append(one.name)
    return [*lost, *_wait(waiting, selector, strayed)]


def _wait(
    waiting: dict[str, bytes],
    selector: selectors.BaseSelector,
    strayed: list[tuple[str, str]],
) -> list[str]:
    """Wait for what each is to get, and return who does not."""
    while waiting and (ready := selector.select(_PATIENCE)):
        for key, _ in ready:
            one = key.data
            try:
                data = one.socket.recv(SIZE)
            except OSError:
                data = b""
            if not data:
                selector.unregister(one.socket)
            elif waiting.get(one.name) == data:
                del waiting[one.name]
            else:
                strayed.append((one.name, data.decode().strip()))
    return [*waiting]


@contextlib.contextmanager
def kept_busy(them: Sequence[Asker]) -> Iterator[None]:
    """Have them ask all the time; whoever is not answered fails the test."""
    stopping, went_round = threading.Event(), 0
    outcome = Outcome()

    def work() -> None:
        nonlocal went_round, outcome
        while not stopping.is_set() and outcome == Outcome():
            outcome = ask(them)
            went_round += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
        reached = went_round + 3
        wait_until(lambda: went_round >= reached or outcome != Outcome(), "it goes on")
    finally:
        stopping.set()
        thread.join()
    assert outcome == Outcome()

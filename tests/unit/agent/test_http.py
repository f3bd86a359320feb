"""The HTTP door, on loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import select
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from ipmasq_agent.agent import http as door
from ipmasq_agent.agent.http import (
    MOST_CONNECTIONS,
    Answers,
    Door,
    HttpServer,
    data,
    listen,
    split_address,
    text,
)
from ipmasq_agent.errors import HostError, UsageError
from tests.waiting import wait_until


class Server(HttpServer):
    """One door, on a port."""

    def __init__(self, address: str, answers: Answers) -> None:
        listener = listen(address)
        self.port: int = listener.getsockname()[1]
        super().__init__([Door(listener, answers)])


def get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_answers_from_its_table_and_says_not_found_to_the_rest() -> None:
    server = Server(
        "127.0.0.1:0",
        {"/readyz": lambda _: text(503, "waiting"), "/status": lambda _: data({"a": 1})},
    )
    try:
        assert get(server.port, "/readyz") == (503, b"waiting\n")
        code, body = get(server.port, "/status?pretty")
        assert (code, json.loads(body)) == (200, {"a": 1})
        assert get(server.port, "/nothing")[0] == 404
    finally:
        server.close()


def test_closing_frees_the_port() -> None:
    server = Server("127.0.0.1:0", {})
    server.close()
    Server(f"127.0.0.1:{server.port}", {}).close()


def test_a_port_in_use_is_an_error_that_names_the_flag() -> None:
    server = Server("127.0.0.1:0", {})
    try:
        with pytest.raises(HostError, match="--http-address"):
            Server(f"127.0.0.1:{server.port}", {})
    finally:
        server.close()


@pytest.mark.parametrize("address", ["9797", "localhost", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"HOST:PORT"):
        split_address(address)


def test_addresses_may_be_ipv6_or_leave_the_host_out() -> None:
    assert split_address("[::1]:9797") == ("::1", 9797)
    assert split_address(":9797") == ("0.0.0.0", 9797)
    assert split_address("localhost:9797") == ("127.0.0.1", 9797)


def test_a_name_is_no_address_to_listen_on() -> None:
    with pytest.raises(UsageError, match="is not an IP address"):
        split_address("node-1.example:9797")


def test_nobody_is_asked_for_the_name_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a name is looked up")

    for asking in ("getaddrinfo", "gethostbyaddr", "getfqdn", "gethostbyname", "getnameinfo"):
        monkeypatch.setattr(socket, asking, refuse)
    for address in ("127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"):
        Server(address, {}).close()


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture) -> Iterator[Server]:
    big = "x" * 20_000_000

    def broken(_: str) -> door.Answer:
        raise KeyError("hush-hush")

    table = {
        "/healthz": lambda _: text(200, "ok"),
        "/big": lambda _: text(200, big),
        "/broken": broken,
    }
    made = Server("127.0.0.1:0", table)
    yield made
    made.close()
    unasked = [record for record in caplog.records if record.getMessage() != "no answer"]
    assert unasked == []


def connected(server: Server, words: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    made.sendall(words)
    return made


def test_head_is_answered_without_a_body(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("HEAD", "/healthz")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Length"), answer.read()) == (200, "3", b"")


def test_other_methods_are_refused_and_their_bodies_not_waited_for(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", "/healthz", body=b"x" * 100_000)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\n\n", 400),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 10_000, 431),
        (b"GET /healthz HTTP/1.0\n\n", 200),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500),
    ],
)
def test_each_request_has_an_answer(server: Server, words: bytes, status: int) -> None:
    with connected(server, words) as client:
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"hush-hush" not in answer
    assert get(server.port, "/healthz") == (200, b"ok\n")


def test_a_request_may_come_in_pieces(server: Server) -> None:
    with connected(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n":
            client.send(bytes([byte]))
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.endswith(b"\r\n\r\nok\n")


def test_a_large_answer_comes_whole_though_its_reader_is_slow(server: Server) -> None:
    with connected(server, b"GET /big HTTP/1.1\r\n\r\n") as client:
        assert get(server.port, "/healthz") == (200, b"ok\n")
        answer = b"".join(iter(lambda: client.recv(1 << 20), b""))
    assert len(answer.partition(b"\r\n\r\n")[2]) == 20_000_001


def test_probes_are_answered_while_any_number_of_clients_dawdles(server: Server) -> None:
    with contextlib.ExitStack() as opened:
        for number in range(3 * MOST_CONNECTIONS):
            words = (b"", b"GET /heal", b"GET /big HTTP/1.1\r\n\r\n")[number % 3]
            opened.enter_context(connected(server, words))
            if number % 20 == 0:
                assert get(server.port, "/healthz") == (200, b"ok\n")
        assert len(server._connections) <= MOST_CONNECTIONS


def test_who_speaks_while_another_is_let_in_for_it_is_let_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def slow(_: str) -> door.Answer:
        asked.set()
        assert answered.wait(20)
        return text(200, "ok")

    server = Server("127.0.0.1:0", {"/slow": slow, "/healthz": lambda _: text(200, "ok")})
    with contextlib.closing(server), contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connected(server)) for _ in range(MOST_CONNECTIONS - 1)]
        wait_until(lambda: len(server._connections) == len(clients), "all are let in")
        opened.enter_context(connected(server, b"GET /slow HTTP/1.1\r\n\r\n"))
        assert asked.wait(20)
        # Both are found at once when the thread looks up again.
        clients[0].sendall(b"GET /heal")
        opened.enter_context(connected(server))
        answered.set()
        assert get(server.port, "/healthz") == (200, b"ok\n")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_who_dawdles_is_sent_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_ASKING", 0.2)
    with connected(server, b"GET /heal") as client:
        assert client.recv(1) == b""  # and not the client's own time-out


def test_broken_connections_leave_no_trace(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    reset = struct.pack("ii", 1, 0)
    for words in (b"", b"GET /heal", b"GET /big HTTP/1.1\r\n\r\n"):
        client = connected(server, words)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        client.close()
    assert get(server.port, "/healthz") == (200, b"ok\n")
    assert capfd.readouterr() == ("", "")


def test_without_descriptors_the_thread_sleeps_and_answers_later(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    let_in = server._let_in

    def counted(poll: select.poll, at: Door) -> bool:
        tries.append(let_in(poll, at))
        return tries[-1]

    monkeypatch.setattr(server, "_let_in", counted)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as opened:
        client = opened.enter_context(socket.socket())
        client.settimeout(20)
        lowest = opened.enter_context(open(os.devnull)).fileno()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            began = time.monotonic()
            while len(tries) < 2 and time.monotonic() < began + 20:
                time.sleep(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        took = time.monotonic() - began
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert tries[0] is False
    assert tries.count(False) <= took + 2


@pytest.mark.parametrize(
    ("head", "token"),
    [
        (b"Authorization: Bearer abc\r\n", b"abc"),
        (b"X: 1\r\nAUTHORIZATION:bearer  abc \r\n", b"abc"),
        (b"Authorization: Basic abc\r\n", None),
        (b"Authorization: abc\r\n", None),
        (b"Authorization: Bearer\r\n", None),
        (b"Proxy-Authorization: Bearer abc\r\n", None),
        (b"\r\nAuthorization: Bearer abc\r\n", None),  # what follows the head is none of it
        (b"Authorization: Bearer \xff\x00\r\n", b"\xff\x00"),
    ],
)
def test_a_door_is_told_the_token_and_says_who_may_know(head: bytes, token: bytes | None) -> None:
    told: list[tuple[str, bytes | None]] = []

    def admits(path: str, given: bytes | None) -> bool:
        told.append((path, given))
        return False

    listener = listen("127.0.0.1:0")
    server = HttpServer([Door(listener, {"/metrics": lambda _: text(200, "secret")}, admits)])
    try:
        with socket.create_connection(listener.getsockname(), timeout=20) as asking:
            asking.sendall(b"GET /metrics?a HTTP/1.1\r\n" + head + b"\r\n")
            answer = b"".join(iter(lambda: asking.recv(4096), b""))
    finally:
        server.close()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in answer
    assert b"secret" not in answer
    assert told == [("/metrics", token)]

"""The HTTP door, on loopback."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from ipmasq_agent.agent.http import HttpServer, data, split_address, text
from ipmasq_agent.errors import HostError, UsageError


def get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_answers_from_its_table_and_says_not_found_to_the_rest() -> None:
    server = HttpServer(
        "127.0.0.1:0", {"/readyz": lambda: text(503, "waiting"), "/status": lambda: data({"a": 1})}
    )
    try:
        assert get(server.port, "/readyz") == (503, b"waiting\n")
        code, body = get(server.port, "/status?pretty")
        assert (code, json.loads(body)) == (200, {"a": 1})
        assert get(server.port, "/nothing")[0] == 404
    finally:
        server.close()


def test_closing_frees_the_port() -> None:
    server = HttpServer("127.0.0.1:0", {})
    server.close()
    HttpServer(f"127.0.0.1:{server.port}", {}).close()


def test_a_port_in_use_is_an_error_that_names_the_flag() -> None:
    server = HttpServer("127.0.0.1:0", {})
    try:
        with pytest.raises(HostError, match="--http-address"):
            HttpServer(f"127.0.0.1:{server.port}", {})
    finally:
        server.close()


@pytest.mark.parametrize("address", ["9797", "localhost", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"HOST:PORT"):
        split_address(address)


def test_addresses_may_be_ipv6_or_leave_the_host_out() -> None:
    assert split_address("[::1]:9797") == ("::1", 9797)
    assert split_address(":9797") == ("0.0.0.0", 9797)

"""Requests to the Kubernetes API: credentials, connections, and what failures mean.

Of the official client, this uses what is hard to get right (kubeconfig, exec plugins,
in-cluster tokens, TLS and proxies) and not the generated API classes or models: the class
of the core group alone would cost each node several MB to read one object.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

import urllib3
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject

from ipmasq_agent.errors import SourceError, SourceUnavailable
from ipmasq_agent.sources.kube_credentials import Credentials
from ipmasq_agent.sources.kube_words import account_of, bare, said, untrusted, why

CONNECT_TIMEOUT = 5.0
# As much of an error's body as is worth reading: a Status object is far smaller.
ERROR_BYTES = 64 << 10
# A peer that is gone without a word (a node that lost power, a NAT entry that expired) is
# noticed after a minute: the first probe after 30 s of silence, then three, 10 s apart.
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
# What urllib3, ssl and the socket layer raise when a connection fails; ValueError is what
# they raise when another thread has just closed it.
TRANSPORT_ERRORS = (
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)


class Content(NamedTuple):
    """What is sent with a request, and its media type."""

    kind: str
    body: bytes


class ApiRefusal(Exception):
    """The API server answered, and not with what was asked for.

    Attributes:
        status: the HTTP status, or the code of a Status object in a watch.
        message: the server's own words, as ``KubeApi.said`` lets them through.
        retry_after: seconds that the server asks us to wait; 0 if it does not say.
        by_api: whether it is an answer as Kubernetes gives it, and not one of something before it.
    """

    def __init__(
        self, status: int, message: str, retry_after: float = 0.0, *, by_api: bool = True
    ) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self.by_api = by_api


class KubeApi:
    """Requests to one API server, from any thread.

    Attributes:
        host: the URL of the API server, once it is known, without what is secret in it.

    Args:
        kubeconfig, context: see ``Credentials``.
        connections: how many are kept for threads that ask at once; None for the client's default.
    """

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        connections: int | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._connections = connections
        self._client: RESTClientObject | None = None
        self._loaded = Credentials(kubeconfig, context)
        self._sent: str | None = None
        self._proxy: str | None = None
        self.host = "the API server"

    @property
    def credentials(self) -> Credentials:
        """Those of the latest request."""
        return self._loaded

    @property
    def account(self) -> str:
        """Who the server was told that we are, where the token says so."""
        return account_of(self._sent)

    @property
    def way(self) -> str:
        """What is between us and the server, in words after its address."""
        return f" through the proxy {self._proxy}" if self._proxy else ""

    def said(self, text: str) -> str:
        """Return what the server says, without the credentials that we sent it."""
        return said(text, self._sent)

    def unreachable(self, cause: BaseException) -> SourceUnavailable:
        """Return what to tell a user about an API server that does not answer."""
        if self._proxy:
            remedy = self.without_proxy()
        elif untrusted(cause):
            server = urllib3.util.parse_url(self.host)
            shown = f"openssl s_client -showcerts -connect {server.host}:{server.port or 443}"
            remedy = f"compare what `{shown}` shows with {self._loaded.authorities}"
        else:
            remedy = f"see whether `curl -k {self.host}/livez` answers from this node"
        return SourceUnavailable(
            f"the Kubernetes API at {self.host} cannot be reached{self.way}: {why(cause)}",
            remedy=remedy,
        )

    def without_proxy(self) -> str:
        """Return what to do where a proxy is no way to the server."""
        host = urllib3.util.parse_url(self.host).host
        return f"correct {self._loaded.proxy}, or add {host} to $NO_PROXY to ask without it"

    def ask(
        self,
        path: str,
        query: Mapping[str, str],
        *,
        read_timeout: float,
        method: str = "GET",
        content: Content | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return the response, whose body is still to be read.

        Credentials that the server does not accept (401) are loaded anew at once, as they
        may have been rotated, and the request is repeated.

        Raises:
            ApiRefusal: the server answered with an error.
            SourceUnavailable: there was no answer.
            SourceError: there are no usable credentials.
        """
        client = self._connect()
        try:
            return self._send(client, method, path, query, content, read_timeout)
        except ApiRefusal as refusal:
            if refusal.status != 401:
                raise
        self._forget(client)
        return self._send(self._connect(), method, path, query, content, read_timeout)

    def read(
        self,
        path: str,
        query: Mapping[str, str],
        *,
        read_timeout: float,
        method: str = "GET",
        content: Content | None = None,
    ) -> bytes:
        """Return the whole body of the response to a request; raises what ``ask`` does."""
        response = self.ask(path, query, read_timeout=read_timeout, method=method, content=content)
        try:
            body: bytes = response.read()
        except TRANSPORT_ERRORS as cause:
            response.close()
            raise self.unreachable(cause) from cause
        response.release_conn()
        return body

    def close(self) -> None:
        """Close idle connections. A later request opens new ones."""
        with self._lock:
            client = self._client
        if client is not None:
            self._forget(client)

    def way_in(self) -> tuple[Configuration, str | None]:
        """Return how to connect to the server, and what to send it as Authorization.

        Raises:
            SourceError: there are no usable credentials.
        """
        configuration: Configuration = self._connect().configuration
        self._sent = self._loaded.authorization(configuration)
        return configuration, self._sent

    def _send(
        self,
        client: RESTClientObject,
        method: str,
        path: str,
        query: Mapping[str, str],
        content: Content | None,
        read_timeout: float,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "ipmasq-agent"}
        if content is not None:
            headers["Content-Type"] = content.kind
        self._sent = self._loaded.authorization(client.configuration)
        if self._sent is not None:
            headers["Authorization"] = self._sent
        try:
            response: urllib3.BaseHTTPResponse = client.pool_manager.request(
                method,
                f"{client.configuration.host}{path}?{urlencode(query)}",
                body=None if content is None else content.body,
                headers=headers,
                preload_content=False,
                redirect=False,
                # Whoever calls us has a backoff of his own.
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout),
            )
        # Not only those: nothing of a library's goes to whoever prints what nobody foresaw.
        except Exception as cause:
            raise self.unreachable(cause) from cause
        if response.status in (200, 201):
            return response
        try:
            raise self._refusal(response)
        finally:
            response.close()

    def _refusal(self, response: urllib3.BaseHTTPResponse) -> ApiRefusal:
        """Read an error response, whose body is a Status object if it comes from the API."""
        message = response.reason or "no reason given"
        by_api = False
        with contextlib.suppress(*TRANSPORT_ERRORS):
            body = response.read(ERROR_BYTES)
            status = json.loads(body)
            if isinstance(status, dict) and status.get("message"):
                message, by_api = str(status["message"]), True
        asked = response.headers.get("Retry-After", "")
        retry_after = float(asked) if asked.isdecimal() else 0.0
        return ApiRefusal(response.status, self.said(message), retry_after, by_api=by_api)

    def _connect(self) -> RESTClientObject:
        with self._lock:
            if self._client is None:
                self._client = self._open()
            return self._client

    def _open(self) -> RESTClientObject:
        configuration = self._loaded.load()
        if self._connections is not None:
            configuration.connection_pool_maxsize = self._connections
        configuration.socket_options = [
            *urllib3.connection.HTTPConnection.default_socket_options,
            *KEEPALIVE,
        ]
        self.host = bare(configuration.host)
        try:
            client = RESTClientObject(configuration)
        # The proxy's URL and package are looked at here, in whichever way they fail.
        except Exception as cause:
            from ipmasq_agent.sources.kubeconfig import check_proxy

            if configuration.proxy:
                check_proxy(configuration.proxy)
            raise SourceError(f"{self._loaded.name} cannot be used: {why(cause)}") from cause
        pools = client.pool_manager
        proxy = getattr(pools, "proxy_url", None) or (pools.proxy and pools.proxy.url)
        self._proxy = bare(proxy) if proxy else None
        return client

    def _forget(self, client: RESTClientObject) -> None:
        with self._lock:
            if self._client is client:
                self._client = None
        client.pool_manager.clear()

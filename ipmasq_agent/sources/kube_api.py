"""Requests to the Kubernetes API: credentials, connections, and what failures mean.

Of the official client, this uses what is hard to get right (kubeconfig, exec plugins,
in-cluster tokens, TLS and proxies) and not the generated API classes or models: the class
of the core group alone would cost each node several MB to read one object.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import urllib3
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import (
    ConfigException,
    incluster_config,
    load_incluster_config,
    load_kube_config,
)

from ipmasq_agent.errors import SourceError, SourceUnavailable

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
TRANSPORT_ERRORS = (urllib3.exceptions.HTTPError, OSError, ValueError)


class ApiRefusal(Exception):
    """The API server answered, and not with what was asked for.

    Attributes:
        status: the HTTP status, or the code of a Status object in a watch.
        message: the server's own words.
        retry_after: seconds that the server asks us to wait; 0 if it does not say.
    """

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after


class KubeApi:
    """GET requests to one API server, from any thread.

    Attributes:
        credentials: where they come from, in words.
        host: the URL of the API server, once it is known.

    Args:
        kubeconfig: path of a kubeconfig; without it $KUBECONFIG, then the ServiceAccount
            of the pod we run in, then ~/.kube/config.
        context: its context to use, instead of the current one.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._lock = threading.Lock()
        self._client: RESTClientObject | None = None
        self.credentials = "the credentials"
        self.host = "the API server"

    def get(
        self, path: str, query: Mapping[str, str], *, read_timeout: float
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
            return self._get(client, path, query, read_timeout)
        except ApiRefusal as refusal:
            if refusal.status != 401:
                raise
        self._forget(client)
        return self._get(self._connect(), path, query, read_timeout)

    def close(self) -> None:
        """Close idle connections. A later request opens new ones."""
        with self._lock:
            client = self._client
        if client is not None:
            self._forget(client)

    def _get(
        self, client: RESTClientObject, path: str, query: Mapping[str, str], read_timeout: float
    ) -> urllib3.BaseHTTPResponse:
        configuration = client.configuration
        headers = {"Accept": "application/json", "User-Agent": "ipmasq-agent"}
        try:
            # Reads the ServiceAccount's token again once a minute, by the client's hook.
            for setting in configuration.auth_settings().values():
                headers[setting["key"]] = setting["value"]
        except (ConfigException, OSError) as cause:
            raise SourceUnavailable(f"the credentials cannot be read: {cause}") from cause
        try:
            response: urllib3.BaseHTTPResponse = client.pool_manager.request(
                "GET",
                f"{configuration.host}{path}?{urlencode(query)}",
                headers=headers,
                preload_content=False,
                redirect=False,
                # Whoever calls us has a backoff of his own.
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout),
            )
        except TRANSPORT_ERRORS as cause:
            raise unreachable(configuration.host, cause) from cause
        if response.status == 200:
            return response
        try:
            raise _refusal(response)
        finally:
            response.close()

    def _connect(self) -> RESTClientObject:
        with self._lock:
            if self._client is None:
                configuration = self._configure()
                self.host = configuration.host
                self._client = RESTClientObject(configuration)
            return self._client

    def _forget(self, client: RESTClientObject) -> None:
        with self._lock:
            if self._client is client:
                self._client = None
        client.pool_manager.clear()

    def _configure(self) -> Configuration:
        """Load credentials from the first place that has them."""
        configuration = Configuration()
        configuration.socket_options = [
            *urllib3.connection.HTTPConnection.default_socket_options,
            *KEEPALIVE,
        ]
        kubeconfig = self._kubeconfig or os.environ.get("KUBECONFIG")
        home = Path("~/.kube/config").expanduser()
        in_cluster = incluster_config.SERVICE_HOST_ENV_NAME in os.environ
        try:
            if not kubeconfig and not self._context and in_cluster:
                self.credentials = "the ServiceAccount of this pod"
                load_incluster_config(client_configuration=configuration)
            elif kubeconfig or home.exists():
                kubeconfig = kubeconfig or str(home)
                self.credentials = f"the kubeconfig {kubeconfig}"
                load_kube_config(
                    config_file=kubeconfig,
                    context=self._context,
                    client_configuration=configuration,
                    persist_config=False,
                )
            else:
                raise SourceError(
                    "there are no credentials for the Kubernetes API: this is not a pod with a "
                    "ServiceAccount, $KUBECONFIG is not set, and ~/.kube/config does not exist",
                    remedy="set KUBECONFIG, or read a file with --config",
                )
        # Whatever is wrong in a kubeconfig surfaces as any of these.
        except (ConfigException, OSError, ValueError, KeyError, TypeError) as cause:
            raise SourceError(
                f"{self.credentials} cannot be used: {cause}",
                remedy="check it with `kubectl config view`",
            ) from cause
        return configuration


def unreachable(host: str, cause: BaseException) -> SourceUnavailable:
    """Return what to tell a user about an API server that does not answer."""
    reason = str(cause)
    # urllib3 wraps the one line that matters in several that show its objects.
    inner: BaseException | None = cause
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            reason = inner.strerror
        inner = inner.__cause__ or inner.__context__
    return SourceUnavailable(
        f"the Kubernetes API at {host} cannot be reached: {reason}",
        remedy=f"see whether `curl -k {host}/livez` answers from this node",
    )


def _refusal(response: urllib3.BaseHTTPResponse) -> ApiRefusal:
    """Read an error response, whose body is a Status object if it comes from the API."""
    message = response.reason or "no reason given"
    with contextlib.suppress(*TRANSPORT_ERRORS):
        body = response.read(ERROR_BYTES)
        status = json.loads(body)
        if isinstance(status, dict) and status.get("message"):
            message = str(status["message"])
    retry_after = response.headers.get("Retry-After", "")
    return ApiRefusal(
        response.status, message, float(retry_after) if retry_after.isdecimal() else 0.0
    )

"""Failures of connections and credentials, in words of ours.

Libraries put into their messages what they had at hand: the value of a header, a URL with a
password in it, a line of a file, what a program printed, the addresses of their objects. So
none of these messages is passed on. What is said instead comes from the lists below, or is
the kernel's, the resolver's or OpenSSL's own name for an error.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import unquote

import urllib3
import yaml
from kubernetes.config import ConfigException

from ipmasq_agent.logs import one_line

# As much of a server's own sentence as is passed on.
LONGEST = 600
WITHHELD = "[withheld]"

# The first that fits, from the innermost cause outwards.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (urllib3.exceptions.ReadTimeoutError, "there is no answer in time"),
    (urllib3.exceptions.NameResolutionError, "its name is not resolved"),
    (urllib3.exceptions.NewConnectionError, "no connection can be made"),
    (urllib3.exceptions.TimeoutError, "there is no connection in time"),
    (urllib3.exceptions.ProxySchemeUnknown, "the scheme of the proxy's URL is not supported"),
    (urllib3.exceptions.LocationValueError, "the URL cannot be read"),
    (urllib3.exceptions.DecodeError, "the answer cannot be decoded"),
    (http.client.RemoteDisconnected, "the connection was closed without an answer"),
    (http.client.IncompleteRead, "the connection was closed in the middle of an answer"),
    (http.client.HTTPException, "the answer is not HTTP"),
    (urllib3.exceptions.ProtocolError, "the connection broke off"),
    (UnicodeError, "it is not UTF-8 text"),
    (json.JSONDecodeError, "the answer is not JSON"),
    (yaml.YAMLError, "it is not YAML"),
    (RecursionError, "it is nested too deeply"),
)
# What the client says of a pod's ServiceAccount, word for word: there is nothing else in it.
_SERVICE_ACCOUNT = {
    "Service host/port is not set.": "$KUBERNETES_SERVICE_PORT is not set",
    "Service host/port is set but empty.": "$KUBERNETES_SERVICE_HOST or _PORT is empty",
    "Service token file does not exist.": "the token file does not exist",
    "Service certification file does not exist.": "the certificate file does not exist",
    "Cert file exists but empty.": "the certificate file is empty",
    "Token file exists but empty.": "the token file is empty",
}


def why(cause: BaseException) -> str:
    """Return the reason of a failure that a library or the kernel tells."""
    chain = list(_chain(cause))
    found = next(filter(None, map(_word, reversed(chain))), None)
    reason = found or f"it fails with a {type(cause).__name__}"
    if any(isinstance(each, urllib3.exceptions.ProxyError) for each in chain):
        return f"the proxy does not lead there: {reason}"
    return reason


def _chain(cause: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what led to it, from the outermost on."""
    inner: BaseException | None = cause
    while inner is not None:
        yield inner
        inner = inner.__cause__ or inner.__context__


def _word(cause: BaseException) -> str | None:
    if isinstance(cause, ConfigException):
        return _SERVICE_ACCOUNT.get(str(cause))
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS fails: {(cause.reason or 'unknown').replace('_', ' ').lower()}"
    if isinstance(cause, socket.gaierror):
        return f"its name is not resolved: {cause.strerror}"
    if isinstance(cause, OSError) and isinstance(cause.errno, int):
        return os.strerror(cause.errno)
    # http.client, of a proxy that was asked for a tunnel.
    if match := re.match(r"Tunnel connection failed: ([0-9]{3})\b", str(cause)):
        return f"it answers {match[1]}"
    return next((word for kind, word in _WORDS if isinstance(cause, kind)), None)


def untrusted(cause: BaseException) -> bool:
    """Whether a server's certificate is what is wrong."""
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in _chain(cause))


def account_of(authorization: str | None) -> str:
    """Return whose a token is, like system:serviceaccount:NAMESPACE:NAME; empty if it is not told.

    A ServiceAccount's token is a JSON Web Token (RFC 7519), which names its subject.
    """
    with contextlib.suppress(ValueError, IndexError, TypeError, KeyError):
        payload = (authorization or "").split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(payload + "=="))["sub"])
    return ""


def bare(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    scheme, _, rest = url.rpartition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = rest.partition("/")
    return (f"{scheme}://" if scheme else "") + authority.rpartition("@")[2] + slash + path


def said(text: str, authorization: str | None) -> str:
    """Return what a server says in one line, without the credentials that it was sent."""
    for secret in _secrets(authorization or ""):
        text = text.replace(secret, WITHHELD)
    line = one_line(text)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _secrets(authorization: str) -> Iterator[str]:
    scheme, _, value = authorization.partition(" ")
    if not value:
        return
    yield value
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            password = base64.b64decode(value).decode().partition(":")[2]
            yield from filter(None, (password, unquote(password)))

"""Where the credentials for the Kubernetes API come from, and the header that they make.

The official client reads kubeconfigs, runs exec plugins and follows tokens that rotate. What
it says of failures quotes files and programs, so here it is replaced by words of ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import urllib3
from kubernetes.client import Configuration
from kubernetes.config import incluster_config, load_incluster_config, load_kube_config

from ipmasq_agent.errors import SourceError, SourceUnavailable
from ipmasq_agent.sources.kube_words import why


class Credentials:
    """Those of the first place that has them.

    Attributes:
        name: where they come from, in words.
        address: where the server's address comes from.
        authorities: where the authorities are that its certificate has to be signed by.
        renewal: what to do where they are not accepted.
        check: what to do where they cannot be used.
        proxy: whose a proxy's URL is.

    Args:
        kubeconfig: path of a kubeconfig; without it $KUBECONFIG, then the ServiceAccount
            of the pod we run in, then ~/.kube/config.
        context: its context to use, instead of the current one.
    """

    def __init__(self, kubeconfig: str | None, context: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._plugin: str | None = None
        self.name = self.address = self.authorities = "the credentials"
        self.renewal = "renew them"
        self.check: str | None = None
        self.proxy = ""

    def load(self) -> Configuration:
        """Read them anew.

        Raises:
            SourceError: there are none, or none that can be used.
        """
        configuration = Configuration()
        self._plugin = None
        kubeconfig = self._kubeconfig or os.environ.get("KUBECONFIG")
        in_cluster = incluster_config.SERVICE_HOST_ENV_NAME in os.environ
        home = Path("~/.kube/config").expanduser()
        if not kubeconfig and not self._context and in_cluster:
            self.name = "the ServiceAccount of this pod"
            self.address = "$KUBERNETES_SERVICE_HOST and _PORT of this pod"
            self.authorities = incluster_config.SERVICE_CERT_FILENAME
            self.renewal = self.check = (
                "restart the pod for a new token; it needs a serviceAccountName that exists, and "
                "no automountServiceAccountToken: false"
            )
        elif kubeconfig or home.exists():
            kubeconfig = kubeconfig or str(home)
            self.name = self.address = f"the kubeconfig {kubeconfig}"
            self.authorities = f"the certificate-authority of {self.name}"
            self.check = "check it with `kubectl config view`"
        else:
            raise SourceError(
                "there are no credentials for the Kubernetes API: this is not a pod with a "
                "ServiceAccount, $KUBECONFIG is not set, and ~/.kube/config does not exist",
                remedy="set KUBECONFIG, or read a file with --config",
            )
        with self._spoken_for():
            if kubeconfig:
                from ipmasq_agent.sources.kubeconfig import check

                paths = [os.path.expanduser(each) for each in kubeconfig.split(os.pathsep) if each]
                self._plugin = check(paths, self._context)
                load_kube_config(
                    config_file=kubeconfig,
                    context=self._context,
                    client_configuration=configuration,
                    persist_config=False,
                )
            else:
                load_incluster_config(client_configuration=configuration)
        variables = (name for name, value in os.environ.items() if value == configuration.proxy)
        named = (f"${name}" for name in variables if name.lower().endswith("_proxy"))
        self.proxy = next(named, f"proxy-url of {self.name}")
        _authorise_proxy(configuration)
        return configuration

    def authorization(self, configuration: Configuration) -> str | None:
        """Return the value of the header, or None where there is nothing to send.

        A ServiceAccount's token is read again once a minute, and a plugin is run again when
        its token is about to expire. White space around a token does not belong to it, as in
        client-go: files made by ``echo`` end with a line break.

        Raises:
            SourceError: there is none that can be sent.
        """
        value = None
        with self._spoken_for():
            # By the client's hook.
            for setting in configuration.auth_settings().values():
                value = setting["value"]
        if value is None:
            return None
        scheme, _, token = str(value).partition(" ")
        token = token.strip()
        if not token:
            raise SourceUnavailable(f"{self.name} cannot be used: the token is empty")
        if not (token.isascii() and token.isprintable()):
            raise SourceError(
                f"{self.name} cannot be used: the token holds what no header can carry",
                remedy="write the token alone, in one line",
            )
        return f"{scheme} {token}"

    @contextlib.contextmanager
    def _spoken_for(self) -> Iterator[None]:
        """Turn whatever the client raises, or logs of a plugin, into an error of ours."""
        with _overheard() as messages:
            try:
                yield
            except SourceError:
                raise
            # Whatever is wrong with a file or a plugin surfaces as any exception.
            except Exception as cause:
                raise SourceUnavailable(
                    f"{self.name} cannot be used: {why(cause)}",
                    remedy=self.check,
                ) from cause
        if messages and self._plugin is not None:
            raise SourceUnavailable(
                f"{self.name} cannot be used: its plugin {os.path.basename(self._plugin)} "
                f"{_of_plugin(messages[-1])}",
                remedy="run it by hand to see why",
            )


@contextlib.contextmanager
def _overheard() -> Iterator[list[str]]:
    """Catch what this thread says to the root logger, and keep it off the terminal.

    The client tells there what became of a plugin, with all that the plugin printed.
    """
    messages: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        messages.append(record.getMessage())
        return False

    # With a handler there, logging.error() sets up none that writes to standard error.
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addFilter(keep)
    root.addHandler(silent)
    try:
        yield messages
    finally:
        root.removeHandler(silent)
        root.removeFilter(keep)


def _of_plugin(message: str) -> str:
    """Return what became of a plugin; ``message`` is the client's."""
    if match := re.match(r"exec: process returned (-?[0-9]+)\b", message):
        return f"exits with {match[1]}"
    if match := re.match(r"\[Errno ([0-9]+)\]", message):
        return f"cannot be run: {os.strerror(int(match[1]))}"
    if message.startswith("exec: missing"):
        return "gives neither a token nor a certificate with its key"
    return "does not answer with an ExecCredential"


def _authorise_proxy(configuration: Configuration) -> None:
    """Have user and password of an HTTP proxy's URL sent to it, as client-go does."""
    with contextlib.suppress(urllib3.exceptions.LocationParseError):
        proxy = urllib3.util.parse_url(configuration.proxy or "")
        user, password = proxy.auth_decoded
        if user is not None and proxy.scheme in ("http", "https"):
            configuration.proxy_headers = urllib3.util.make_headers(
                proxy_basic_auth=f"{user}:{password or ''}"
            )

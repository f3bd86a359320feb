"""The data of a ConfigMap, read once and whole: key → text.

For what other programs of the cluster keep there; a document of ours comes by ``configmap``.
"""

from __future__ import annotations

import json

from ipmasq_agent.errors import AccessDenied, SourceError, SourceUnavailable
from ipmasq_agent.sources.kube_api import (
    TRANSPORT_ERRORS,
    ApiRefusal,
    KubeApi,
)

READ_TIMEOUT = 10.0


def read_data(namespace: str, name: str, *, kubeconfig: str | None = None) -> dict[str, str]:
    """Return the data of a ConfigMap.

    Raises:
        AccessDenied: the API refuses us; the remedy is the permission that is missing.
        SourceUnavailable: there is no answer.
        SourceError: there is no such ConfigMap, or there are no credentials.
    """
    api = KubeApi(kubeconfig)
    try:
        path = f"/api/v1/namespaces/{namespace}/configmaps/{name}"
        response = api.get(path, {}, read_timeout=READ_TIMEOUT)
        try:
            body = json.loads(response.read())
        except TRANSPORT_ERRORS as cause:
            raise api.unreachable(cause) from cause
        finally:
            response.close()
    except ApiRefusal as refusal:
        raise _explained(refusal, f"ConfigMap {namespace}/{name}", api.host) from refusal
    finally:
        api.close()
    data = body.get("data") if isinstance(body, dict) else None
    return {str(key): str(text) for key, text in (data or {}).items()}


def _explained(refusal: ApiRefusal, what: str, host: str) -> SourceError:
    said = f"{refusal.message} ({refusal.status})"
    match refusal.status:
        case 401 | 403:
            return AccessDenied(
                f"the Kubernetes API does not let us read {what}: {said}",
                remedy="grant `get` on it, or use --kubeconfig with credentials that have it",
            )
        case 404:
            return SourceError(f"there is no {what} at {host}: {said}")
        case _:
            return SourceUnavailable(f"the Kubernetes API at {host} cannot answer: {said}")

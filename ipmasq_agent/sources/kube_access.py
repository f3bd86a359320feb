"""What a refusal of the Kubernetes API means to users, and how to grant what is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ipmasq_agent.errors import AccessDenied, SourceError, SourceUnavailable
from ipmasq_agent.sources.kube_api import ApiRefusal, KubeApi

PASSING = frozenset({401, 403})
"""With which an API server refuses everybody for a moment when it starts."""
_ACCOUNT = re.compile(r"system:serviceaccount:([^:\s\"]+):([^:\s\"]+)")


@dataclass(frozen=True, slots=True)
class Permission:
    """A rule of RBAC's that is needed to read objects.

    Attributes:
        resource: their plural, in lower case.
        namespace: where they are; None for objects of the whole cluster.
        name: of the one object that is meant, or None for all. What it is for, where it is
            None, is in the name of the role that would grant it: ``ipmasq-agent-RESOURCE``.
        verbs: what is done with them.
        group: the API group of the resource; that of Kubernetes' core has no name.
    """

    resource: str
    namespace: str | None = None
    name: str | None = None
    verbs: tuple[str, ...] = ("get", "list", "watch")
    group: str = ""

    @property
    def rule(self) -> str:
        """As it stands in a Role or a ClusterRole."""
        names = f"resourceNames: [{self.name}], " if self.name else ""
        verbs = ", ".join(self.verbs)
        what = f'apiGroups: ["{self.group}"], resources: [{self.resource}]'
        return f"{{{what}, {names}verbs: [{verbs}]}}"

    @property
    def place(self) -> str:
        """Where the rule has to hold."""
        return f"in namespace {self.namespace}" if self.namespace else "in the whole cluster"

    def grant(self, message: str) -> str:
        """Return the rule that is missing, and the commands that would grant it.

        Args:
            message: of the API, which says who was refused.
        """
        account = _ACCOUNT.search(message)
        who = f"--serviceaccount={account[1]}:{account[2]}" if account else "--user=USER"
        whom = f"ServiceAccount {account[1]}/{account[2]}" if account else "our user"
        kind = "Role" if self.namespace else "ClusterRole"
        scope = f" -n {self.namespace}" if self.namespace else ""
        role = f"{self.name}-reader" if self.name else f"ipmasq-agent-{self.resource}"
        only = f" --resource-name={self.name}" if self.name else ""
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        unless = ""
        if account:
            what = f"{resource}/{self.name}" if self.name else resource
            ask = f"kubectl auth can-i{scope} {self.verbs[-1]} {what} --as={account[0]}"
            unless = f"unless `{ask}` says yes, "
        return (
            f"{unless}give {whom} a {kind} {self.place} with the rule {self.rule}: "
            f"`kubectl{scope} create {kind.lower()} {role} --verb={','.join(self.verbs)} "
            f"--resource={resource}{only} && "
            f"kubectl{scope} create {kind.lower()}binding {role} --{kind.lower()}={role} {who}`"
        )


def explained(refusal: ApiRefusal, api: KubeApi, what: str, permission: Permission) -> SourceError:
    """Return what to tell a user whose API refused to show us something, and what to do."""
    said = f"{refusal.message} ({refusal.status})"
    if not refusal.by_api and refusal.status in PASSING:
        proxied = api.without_proxy() if api.way else None
        return SourceUnavailable(
            f"what answers at {api.host}{api.way} is no Kubernetes API: {said}",
            remedy=proxied or f"check the server's address in {api.credentials.address}",
        )
    if refusal.status == 401:
        return AccessDenied(
            f"the Kubernetes API at {api.host} does not accept {_whose(api)}: {said}",
            remedy=f"{api.credentials.renewal}; who they belong to needs the rule "
            f"{permission.rule} {permission.place}",
        )
    if refusal.status == 403:
        return AccessDenied(
            f"the Kubernetes API does not let us read {what}: {said}",
            remedy=permission.grant(refusal.message),
        )
    if refusal.status == 404:
        return SourceUnavailable(
            f"{api.host} knows no {permission.resource}: {said}",
            remedy=f"check the server's address in {api.credentials.address}",
        )
    return SourceUnavailable(f"the Kubernetes API at {api.host} cannot answer: {said}")


def _whose(api: KubeApi) -> str:
    account = _ACCOUNT.search(api.account)
    return f"{api.credentials.name}" + (f" ({account[1]}/{account[2]})" if account else "")

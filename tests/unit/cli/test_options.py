"""Shared flags: what they add up to, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from ipmasq_agent.cli.options import settings_of, split_configmap
from ipmasq_agent.errors import UsageError
from ipmasq_agent.policy.model import PortRange


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"config": "a", "configmap": ("b/c",)}, "two documents"),
        ({"configmap": ("a/b", "no-namespace")}, "NAMESPACE/NAME"),
        ({"canary_configmap": "a/b"}, "--configmap names none"),
        ({"configmap": ("a/b",), "canary_configmap": "b"}, "--canary-configmap: 'b' is not"),
        ({"to_ports": "70000"}, "1-65535"),
        ({"to_ports": "20-10"}, "upwards"),
        ({"to_ports": "a-b"}, "not a port"),
        ({"masq_chain": "POSTROUTING"}, "taken by iptables"),
        ({"masq_chain": "-x"}, "cannot name a chain"),
        ({"masq_chain": "A" * 29}, "cannot name a chain"),
        ({"masq_chain": "two words"}, "cannot name a chain"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        settings_of(options)


def test_flags_add_up() -> None:
    settings = settings_of(
        {"to_ports": "1024-29999,32768-65535", "jump_position": "first", "masq_chain": "X"}
    )
    assert settings.flags.to_ports == (PortRange(1024, 29999), PortRange(32768, 65535))
    assert settings.placement.jump_first
    assert settings.config == "/etc/config/ip-masq-agent"


def test_a_configmap_may_name_its_key() -> None:
    assert split_configmap("kube-system/ip-masq-agent") == ("kube-system", "ip-masq-agent", None)
    assert split_configmap("a/b:config.yaml") == ("a", "b", "config.yaml")
    assert split_configmap("a/b:*") == ("a", "b", "*")


def test_several_configmaps_are_merged_in_the_order_of_their_names() -> None:
    settings = settings_of({"configmap": ("kube-system/b", "kube-system/a:*", "kube-system/b")})
    assert settings.source().name == "ConfigMap kube-system/a, ConfigMap kube-system/b"
    assert settings_of({"configmap": ("kube-system/b:c",)}).source().name == (
        "ConfigMap kube-system/b key c"
    )


def test_a_document_to_try_stands_beside_that_of_all_nodes() -> None:
    settings = settings_of({"configmap": ("a/b",), "canary_configmap": "a/c"})
    assert settings.source().name == "ConfigMap a/b, ConfigMap a/c"
    assert settings.naming(configmap="d/e").source().name == "ConfigMap d/e"

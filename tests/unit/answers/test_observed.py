"""Which connections are meant, how they are shown, and what is said to decide about them."""

from __future__ import annotations

from ipmasq_agent.answers.explain import Ruling
from ipmasq_agent.answers.observed import Sight, Wanted, reason
from ipmasq_agent.planes.interpretation import Interpretation
from ipmasq_agent.planes.iptables.save import parse_saved
from ipmasq_agent.planes.rules.neighbours import BaseChain, PostroutingHook
from ipmasq_agent.policy.addresses import Family, Prefix, parse_address
from ipmasq_agent.policy.decisions import DecisionMap, Stated, Verdict
from ipmasq_agent.policy.facts import WayOut
from ipmasq_agent.policy.flows import End, Flow
from ipmasq_agent.policy.model import FamilyPolicy, Guards

MOMENT = 1795788191.123456


def number(text: str) -> int:
    return parse_address(text)[1]


POD, SERVICE, SERVER, NODE = map(number, ("172.20.0.5", "10.96.0.1", "8.8.8.8", "192.0.2.1"))
TO_SERVICE = Flow(
    Family.IPV4, 6, End(POD, 4000), End(SERVICE, 80), End(NODE, 5000), End(SERVER, 8080)
)
KEPT = TO_SERVICE._replace(left_as=TO_SERVICE.source)
ECHO = Flow(Family.IPV4, 1, End(POD, 7), End(SERVER, 0), End(NODE, 7), End(SERVER, 0))


def test_an_object_has_names_near_those_of_hubble() -> None:
    sight = Sight(MOMENT, TO_SERVICE, "default/client", None, "rule 1")
    assert sight.as_data() == {
        "time": "2026-11-27T14:03:11.123456Z",
        "verdict": "masquerade",
        "IP": {
            "source": "172.20.0.5",
            "destination": "10.96.0.1",
            "ipVersion": "IPv4",
            "source_xlated": "192.0.2.1",
        },
        "l4": {"TCP": {"source_port": 4000, "destination_port": 80}},
        "source": {"namespace": "default", "pod_name": "client"},
        "destination": {},
        "left_as": {"address": "192.0.2.1", "port": 5000},
        "reached": {"address": "8.8.8.8", "port": 8080},
        "reason": "rule 1",
    }
    data = Sight(None, ECHO).as_data()
    assert (data["time"], data["l4"]) == (None, {"ICMPv4": {"id": 7}})


def test_people_are_shown_names_and_who_answers() -> None:
    assert Sight(MOMENT, TO_SERVICE, "default/client", None, "why").cells() == (
        *("tcp", "default/client:4000", "10.96.0.1:80 (8.8.8.8:8080)", "192.0.2.1:5000"),
        *("masquerade", "why"),
    )
    assert Sight(MOMENT, KEPT).cells()[3:] == ("itself", "keep", "")


def test_what_is_meant() -> None:
    def meant(wanted: Wanted, flow: Flow = TO_SERVICE) -> bool:
        return wanted.by_flow(flow) and wanted.by_pod(Sight(None, flow, "default/client"))

    assert meant(Wanted())
    for prefix, inside in (("10.96.0.0", True), ("8.8.8.0", True), ("172.20.0.0", False)):
        assert meant(Wanted(to=Prefix(Family.IPV4, number(prefix), 24))) == inside
    assert not meant(Wanted(to=Prefix(Family.IPV6, 0, 0)))
    for port, right in ((80, True), (8080, True), (4000, False), (5000, False)):
        assert meant(Wanted(port=port)) == right
    for pod, right in (("client", True), ("default/client", True), ("172.20.0.5", True)):
        assert meant(Wanted(pod=pod)) == right
    assert not meant(Wanted(pod="other"))
    assert not meant(Wanted(pod=""))
    assert meant(Wanted(verdict="masquerade"))
    assert not meant(Wanted(verdict="keep"))
    assert meant(Wanted(verdict="keep"), KEPT)
    assert meant(Wanted(protocol="icmp"), ECHO)
    assert not meant(Wanted(protocol="icmp"))


POSTROUTING = "-A POSTROUTING -m comment --comment ours -j IP-MASQ"
DOCKER = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"
MARKED = "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE"
OUT = WayOut("eth0", "192.0.2.1")


def ruling(policy: FamilyPolicy, *rules: str) -> Ruling:
    """Return what decides where these rules stand at the hook."""
    chains = (":POSTROUTING ACCEPT [0:0]", ":IP-MASQ - [0:0]")
    text = "\n".join(["*nat", *chains, *rules, "COMMIT", ""])
    table = parse_saved(text, Family.IPV4, writer="iptables")
    base = BaseChain(table, "POSTROUTING", 100, own="IP-MASQ")
    hook = PostroutingHook(Family.IPV4, (base,), egress=("eth0",))
    return Ruling(lambda source: Interpretation(policy), hook)


def test_what_is_said_to_decide_is_what_did() -> None:
    pods = (Prefix(Family.IPV4, number("172.20.0.0"), 16),)
    everything = DecisionMap(Family.IPV4, (), Verdict.MASQUERADE, Stated("the default"))
    found = ruling(FamilyPolicy(everything, Guards(sources=pods)), POSTROUTING)

    def said(source: int, reached: int, *, translated: bool, route: WayOut = OUT) -> str:
        return reason(found, source, reached, route, translated=translated, own=False)

    assert said(POD, SERVER, translated=True) == "the default"
    assert "in force now, which keeps it" in said(SERVER, POD, translated=True)
    assert "only what comes from 172.20.0.0/16" in said(SERVER, POD, translated=False)
    here = WayOut("lo", None, local=True)
    assert "an address of this node" in said(POD, NODE, translated=False, route=here)
    assert "in force now, which masquerades it" in said(POD, SERVER, translated=False)
    own = ruling(FamilyPolicy(everything), POSTROUTING)
    said_of_own = reason(own, NODE, SERVER, OUT, translated=False, own=True)
    assert "has its address already" in said_of_own


def test_rules_of_others_are_named_where_they_decide() -> None:
    kept = DecisionMap(Family.IPV4, (), Verdict.NON_MASQUERADE, Stated("our entry"))
    found = ruling(FamilyPolicy(kept), POSTROUTING, DOCKER, MARKED)

    def said(source: int, *, translated: bool, route: WayOut = OUT) -> str:
        return reason(found, source, SERVER, route, translated=translated, own=False)

    container = number("172.17.0.2")
    docker = f"rule 2 of POSTROUTING: {DOCKER.removeprefix('-A POSTROUTING ')}"
    assert said(container, translated=True) == docker
    # Through its own device, or from elsewhere, that rule says nothing.
    for source, route in ((container, WayOut("docker0")), (POD, OUT)):
        assert said(source, translated=False, route=route) == "our entry"
        assert said(source, translated=True, route=route) == (
            "a rule that looks at more than addresses decided: rule 3 of POSTROUTING: "
            "-m mark --mark 0x4000/0x4000 -j MASQUERADE; ours keeps it: our entry"
        )


def test_a_rule_for_some_ports_is_named_where_it_may_have_decided_otherwise() -> None:
    everything = DecisionMap(Family.IPV4, (), Verdict.MASQUERADE, Stated("the default"))
    accepted = "-A POSTROUTING -p udp --dport 53 -j ACCEPT"
    found = ruling(FamilyPolicy(everything), accepted, POSTROUTING)
    assert reason(found, POD, SERVER, OUT, translated=False, own=False) == (
        "a rule that looks at more than addresses decided: rule 1 of POSTROUTING: "
        "-p udp --dport 53 -j ACCEPT; ours masquerades it: the default"
    )
    assert reason(found, POD, SERVER, OUT, translated=True, own=False) == "the default"


def test_each_rule_that_may_have_decided_is_named() -> None:
    kept = DecisionMap(Family.IPV4, (), Verdict.NON_MASQUERADE, Stated("our entry"))
    of_port = "-A POSTROUTING -p udp --sport 99 -j MASQUERADE"
    said = reason(
        ruling(FamilyPolicy(kept), of_port, POSTROUTING, MARKED),
        *(POD, SERVER, OUT),
        translated=True,
        own=False,
    )
    assert "rule 1 of POSTROUTING: -p udp --sport 99 -j MASQUERADE or rule 3 of" in said

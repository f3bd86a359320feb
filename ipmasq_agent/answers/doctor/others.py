"""What others do here: rules that decide in place of ours, other agents, other NAT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ipmasq_agent.answers.doctor.facts import Node, Severity, Symptom
from ipmasq_agent.answers.in_force import in_force, usual
from ipmasq_agent.answers.overrides import shadow
from ipmasq_agent.config.assemble import LINK_LOCAL
from ipmasq_agent.planes.interpretation import Decider, Interpretation
from ipmasq_agent.planes.iptables.ownership import SIGNATURE, UPSTREAM
from ipmasq_agent.planes.placement import LEGACY
from ipmasq_agent.planes.rules.neighbours import BaseChain, PostroutingHook, neighbours
from ipmasq_agent.planes.rules.owners import owner
from ipmasq_agent.planes.rules.rule import Rule, read_prefix
from ipmasq_agent.policy.addresses import Family, collapsed, range_text
from ipmasq_agent.policy.decisions import Reason, Verdict
from ipmasq_agent.policy.model import FamilyPolicy

_KEEP, _MASQUERADE = Verdict.NON_MASQUERADE, Verdict.MASQUERADE
_SHOWN = 4


class _Ruled(NamedTuple):
    """A rule of others that decides otherwise than the document.

    Attributes:
        rule: itself, or why ours decide nothing.
        base: the chain that leads to it; None where that is not known.
        verdict: what it decides.
        ranges: of destinations, ends included.
        some: it does so for some packets only.
    """

    family: Family
    rule: Reason
    base: BaseChain | None
    tracking: bool
    verdict: Verdict
    ranges: tuple[tuple[int, int], ...]
    some: bool

    @property
    def native(self) -> bool:
        """Whether it is of a table of nf_tables that iptables does not know."""
        suffix = self.base.suffix if self.base else ""
        table = suffix.removeprefix(" of table ")
        return table != suffix and table not in ("ip nat", "ip6 nat", "ip raw", "ip6 raw")

    @property
    def whose(self) -> str:
        """Whose it is, as the beginning of a sentence."""
        who = None
        if self.base is not None and isinstance(self.rule, Decider):
            chain = self.rule.where.removesuffix(self.base.suffix)
            who = owner(chain, self.base.suffix.rpartition(" ")[2], _rule_of(self.base, self.rule))
        return f"a rule of {who}" if who else "a rule of somebody else"

    @property
    def line(self) -> str:
        """What it decides about which destinations, as evidence."""
        shown = ", ".join(range_text(self.family, *span) for span in self.ranges[:_SHOWN])
        more = f", ... ({len(self.ranges)} ranges)" if len(self.ranges) > _SHOWN else ""
        some = " for some packets" if self.some else ""
        return f"{self.rule} → {self.verdict}{some}: {shown}{more}"


def _rule_of(base: BaseChain, decider: Decider) -> Rule | None:
    rules = base.table.rules(decider.where.removesuffix(base.suffix))
    position = decider.position or 0
    return rules[position - 1] if 0 < position <= len(rules) else None


def _asked(node: Node, policy: FamilyPolicy) -> FamilyPolicy:
    """Return the policy for pods of this node where the document names no sources.

    A rule for containers that are no pods, as Docker's, is then none of our business.
    """
    here = collapsed(node.pod_networks(policy.family, here=True))
    if policy.guards.sources is not None or not here:
        return policy
    return replace(policy, guards=replace(policy.guards, sources=here))


def _ruled(node: Node) -> Iterator[_Ruled]:
    for family, hook in node.hooks.items():
        policy = node.policies.get(family)
        if policy is None:
            continue
        policy = _asked(node, policy)
        always: dict[tuple[Reason, Verdict], tuple[tuple[int, int], ...]] = {}
        for item in shadow(policy, hook).overridden:
            key = item.rule, item.verdict
            always[key] = (*always.get(key, ()), *item.ranges)
        for (rule, verdict), ranges in always.items():
            yield from _told(node, hook, rule, verdict, ranges, some=False)
        if policy.guards.sources is None:
            continue  # whose packets a rule for some is about, nobody knows
        told = {rule for rule, _ in always}
        for one in in_force(Interpretation(policy), hook).exceptions:
            if one.rule not in told:
                yield from _told(node, hook, one.rule, one.verdict, one.ranges, some=True)


def _told(
    node: Node,
    hook: PostroutingHook,
    rule: Reason,
    verdict: Verdict,
    ranges: tuple[tuple[int, int], ...],
    *,
    some: bool,
) -> Iterator[_Ruled]:
    family = hook.family
    # What is sent to the node itself leaves it by no device: a cache for names on each node
    # exempts its own address from tracking.
    its = {address for of, address in node.addresses if of is family}
    others = [span for span in ranges if span[0] != span[1] or span[0] not in its]
    if not others:
        return
    base, tracking = _base_of(hook, rule)
    yield _Ruled(family, rule, base, tracking, verdict, tuple(others), some)


def _base_of(hook: PostroutingHook, rule: Reason) -> tuple[BaseChain | None, bool]:
    if isinstance(rule, Decider):
        for base in (*hook.tracking, *hook.nat):
            chain = rule.where.removesuffix(base.suffix)
            if f"{chain}{base.suffix}" == rule.where and chain in base.table.chains:
                return base, base in hook.tracking
    return None, False


def _of_nat(node: Node, *, native: bool) -> Iterator[Symptom]:
    """Yield a finding for each rule that translates, or keeps others from it."""
    for one in _ruled(node):
        if one.base is None or one.tracking or one.native is not native:
            continue
        if one.verdict is Verdict.UNKNOWN:
            continue
        does = (
            "masquerades what the document leaves alone"
            if one.verdict is _MASQUERADE
            else "leaves alone what the document masquerades"
        )
        severity = Severity.WARNING if one.some else Severity.ERROR
        link = LINK_LOCAL[one.family]
        if all(link.first <= first <= last <= link.last for first, last in one.ranges):
            severity = Severity.INFO  # of a default that most others do not have
        yield Symptom(
            severity,
            f"{one.whose} {does} ({one.family.value})",
            "Of the nat chains at the postrouting hook the first that translates a connection "
            "decides about it, and the packet never meets our rules.",
            "Turn masquerading off where it is configured (kube-proxy, CNI plugin, firewall), and "
            "leave it to the agent; in the same chain --jump-position first puts ours before it.",
            (one.line,),
        )


def foreign_nat(node: Node) -> Iterator[Symptom]:
    """MASQUERADE, SNAT or ACCEPT in an iptables chain decides in place of our rules."""
    return _of_nat(node, native=False)


def native_nat_chain(node: Node) -> Iterator[Symptom]:
    """A base chain of a native nftables table at the nat hook decides in place of our rules."""
    return _of_nat(node, native=True)


def foreign_source(node: Node) -> Iterator[Symptom]:
    """Others translate what we would, but to an address that is neither ours nor the node's."""
    for family, hook in node.hooks.items():
        policy = node.policies.get(family)
        if policy is None or not policy.masquerades:
            continue
        fixed = sorted({family.show(one.address) for one in policy.action.fixed})
        mine = fixed or [family.show(a) for f, a in node.addresses if f is family]
        meant = " or ".join(fixed) or "an address of this node"
        asked = _asked(node, policy)
        found = neighbours(hook, usual(asked.guards, hook))
        for rule in dict.fromkeys(entry.reason for entry in found.others(_MASQUERADE)):
            source = found.sources.get(rule) if isinstance(rule, Decider) else None
            if isinstance(rule, Decider) and source is not None and source not in mine:
                base, tracking = _base_of(hook, rule)
                ruled = _Ruled(family, rule, base, tracking, _MASQUERADE, (), some=False)
                yield Symptom(
                    Severity.WARNING,
                    f"{ruled.whose} translates to {source}, not to {meant}",
                    "It comes before ours, so receivers see an address that the document does not "
                    "ask for.",
                    "Remove it, or name its address as snatAddress.",
                    (str(rule),),
                )


def notrack(node: Node) -> Iterator[Symptom]:
    """Packets that should be masqueraded are exempt from connection tracking."""
    for one in _ruled(node):
        if one.tracking and one.verdict is not Verdict.UNKNOWN:
            yield Symptom(
                Severity.WARNING if one.some else Severity.ERROR,
                f"{one.whose} exempts packets from connection tracking ({one.family.value})",
                "An untracked packet meets no nat chain at all: it leaves with the pod's address.",
                "Narrow the rule (raw table, or a native chain at prerouting) so that it spares "
                "what pods send out, or use --backend bpf, which needs no tracking.",
                (one.line,),
            )


def unreadable_rule(node: Node) -> Iterator[Symptom]:
    """A rule of others may decide in place of ours, and cannot be read in full."""
    for one in _ruled(node):
        if one.base is not None and one.verdict is Verdict.UNKNOWN:
            translates = any(word in str(one.rule).upper() for word in ("MASQUERADE", "SNAT"))
            yield Symptom(
                Severity.WARNING if translates and not one.some else Severity.INFO,
                f"{one.whose} may decide in place of ours, and cannot be read ({one.family.value})",
                "It asks a set or an option that is not understood here, so what becomes of these "
                "destinations is unknown.",
                "See whether its program masquerades pods (Calico: natOutgoing of the IP pool), "
                "and turn that off there.",
                (one.line,),
            )


def table_dormant(node: Node) -> Iterator[Symptom]:
    """The table that our rules are in is asleep."""
    for family, hook in node.hooks.items():
        if hook.asleep is not None:
            yield Symptom(
                Severity.ERROR,
                f"our rules are asleep ({family.value})",
                "No packet meets a table with the flag dormant.",
                "Find out who set it; `nft add table FAMILY NAME` without the flag wakes it.",
                (hook.asleep,),
            )


def both_iptables(node: Node) -> Iterator[Symptom]:
    """Both variants of iptables have rules."""
    for family, variants in node.iptables.items():
        if all(variants.values()) and len(variants) > 1:
            yield Symptom(
                Severity.WARNING,
                f"both iptables-nft and iptables-legacy have rules ({family.value})",
                "Each packet passes both, and who lists one of them does not see the other: "
                "programs of one node disagree about which iptables it uses.",
                "Move all to one variant (update-alternatives --set iptables ...), and flush the "
                f"other with its own program: {LEGACY} -t TABLE -F, or iptables-nft.",
                tuple(f"{name}: {', '.join(tables)}" for name, tables in variants.items()),
            )


def _signed(node: Node, signature: str) -> Iterator[tuple[Family, str, str]]:
    """Yield chains other than ours with comments of an agent: family, chain, the rule."""
    for family, hook in node.hooks.items():
        seen: set[str] = set()
        for base in hook.nat:
            for name, chain in base.table.chains.items():
                for rule in chain.rules:
                    if not (rule.comment or "").startswith(signature):
                        continue
                    leads = rule.target if rule.target in base.table.chains else None
                    of = name if name != base.name else (leads or rule.target or name)
                    if of not in (base.own, *seen):
                        seen.add(of)
                        yield family, f"{of}{base.suffix}", f"-A {name} {rule.text}"


def upstream_chain(node: Node) -> Iterator[Symptom]:
    """A chain that ip-masq-agent left, or still keeps."""
    for family, chain, rule in _signed(node, UPSTREAM):
        yield Symptom(
            Severity.WARNING,
            f"a chain of ip-masq-agent is there beside ours: {chain} ({family.value})",
            "It goes on masquerading by the last document that it was written for.",
            "Remove ip-masq-agent's DaemonSet, then the chain: "
            f"`ipmasq-agent cleanup --masq-chain {chain.partition(' ')[0]}`.",
            (rule,),
        )


def own_leftover(node: Node) -> Iterator[Symptom]:
    """Rules of an agent of this kind that nobody keeps in step any more."""
    for family, chain, rule in _signed(node, SIGNATURE):
        if node.left and chain.partition(" ")[0] == node.place:
            continue  # told below
        yield Symptom(
            Severity.WARNING,
            f"a chain of this agent under another name is there: {chain} ({family.value})",
            "An agent with another --masq-chain wrote it; it decides by that one's last document.",
            f"`ipmasq-agent cleanup --masq-chain {chain.partition(' ')[0]}`, unless an agent "
            "keeps it.",
            (rule,),
        )
    for line in node.left:
        yield Symptom(
            Severity.WARNING,
            "rules of ours are in a data plane that is not in use",
            "They decide too, by the document for which they were written.",
            "A running agent takes them away after a move; without one, `ipmasq-agent cleanup`.",
            (line,),
        )


def another_agent(node: Node) -> Iterator[Symptom]:
    """Another program writes the chain that is ours."""
    signed = {
        family: [line for line in lines if UPSTREAM in line] for family, lines in node.own.items()
    }
    told = [(f"ip-masq-agent ({f.value})", lines) for f, lines in signed.items() if lines]
    if node.contested:
        told.append((node.contested, [f"the running agent: contested by {node.contested}"]))
    for who, evidence in told:
        yield Symptom(
            Severity.ERROR,
            f"the chain {node.place} is written by another one too: {who}",
            "Each undoes what the other one writes; packets change sides each time.",
            "Stop one of the two; before a migration is over, give ours another --masq-chain.",
            tuple(evidence[:_SHOWN]),
        )


def cilium_masquerades(node: Node) -> Iterator[Symptom]:
    """Cilium's eBPF programs masquerade here too."""
    if node.cilium:
        yield Symptom(
            Severity.WARNING,
            "Cilium masquerades here too",
            "Its programs are at the devices, behind all rules: what our document leaves alone "
            "they may still translate, by Cilium's own list.",
            "Let one of the two masquerade: enable-ipv4-masquerade: false in cilium-config, or no "
            "agent here; `ipmasq-agent compare cilium FILE` shows where they differ.",
            node.cilium,
        )


def services_masqueraded(node: Node) -> Iterator[Symptom]:
    """kube-proxy masquerades what pods of this node send to services."""
    for family, rules in node.services.items():
        for rule in rules:
            if rule.target != "KUBE-MARK-MASQ":
                continue
            source = rule.option("source")
            spared = None
            if source is not None and source.negated:
                spared = read_prefix(" ".join(source.values), family)
            if (source is not None or rule.option("in-interface")) and spared is None:
                continue  # for some sources alone, as a pod that calls itself
            caught = [
                str(pods)
                for pods in node.pod_networks(family, here=True)
                if spared is None or not spared.covers(pods)
            ]
            if not caught:
                continue
            reason = f"its clusterCIDR is {spared}" if spared else "masqueradeAll is set"
            yield Symptom(
                Severity.WARNING,
                f"kube-proxy masquerades what pods send to services ({family.value})",
                f"Of {', '.join(caught[:_SHOWN])} it takes packets to services for traffic from "
                f"outside ({reason}), whatever the document says.",
                "Give kube-proxy a clusterCIDR that covers the pods, and no masqueradeAll.",
                (rule.text,),
            )
            break

"""A process that edits one legacy nat table through libiptc, and nothing else.

    python -m ipmasq_agent.planes.iptables.legacy_worker ipv4

Reads one order a line from standard input (see ``legacy._Worker``), makes its edits on a
fresh copy of the table, commits once, answers with a line. Whoever gives the orders holds
the xtables lock. Rules of others are never parsed nor built again: libiptc hands them
back to the kernel as the bytes they came in, with their counters.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from ipmasq_agent.planes.rules.rule import MATCH_OF

try:
    import iptc
except Exception as failure:
    # It looks for its C libraries while it is imported, and stumbles in many ways where one
    # is missing: OSError, TypeError, an error of its own. People need what to install.
    raise SystemExit(
        f"python-iptables cannot be loaded: {type(failure).__name__}: {failure}; install "
        "libxtables12, libip4tc2 and libip6tc2, and set XTABLES_LIBDIR to the directory of the "
        "iptables extensions where there is no ldconfig to find it"
    ) from failure

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_POSTROUTING = "POSTROUTING"
_NAME_SIZE = 16  # IFNAMSIZ
_Options = list[tuple[str, list[str], bool]]
"""A rule as JSON brings it: options in the order of writing (see ``Rule.written``)."""
_RETURN: Any = ["jump", ["RETURN"], False]


class NatTable:
    """libiptc's copy of the nat table of one family."""

    def __init__(self, family: str) -> None:
        base_table, base_rule = {
            "ipv4": (iptc.Table, iptc.Rule),
            "ipv6": (iptc.Table6, iptc.Rule6),
        }[family]
        self.table = base_table("nat", autocommit=False)
        own = self.table
        # python-iptables asks every table there is whether a target is a chain of it, and
        # asking creates the tables in the kernel. Ours is the only one that counts.
        tables = property(lambda rule: [own])
        self._rule_class = type("NatRule", (base_rule,), {"tables": tables})
        self._plain: Any = None

    def carry_out(self, order: dict[str, Any]) -> None:
        """Edit a fresh copy of the table and commit it.

        The copy is let go of afterwards: of 100,000 rules it is 190 MB.
        """
        self.table.refresh()
        try:
            self._edit(order)
        finally:
            self.table.close()
            if hasattr(_libc, "malloc_trim"):  # glibc's, which keeps what is freed
                _libc.malloc_trim(0)

    def _edit(self, order: dict[str, Any]) -> None:
        chain = order["chain"]
        if order["create"]:
            self.table.create_chain(chain)
        jumps = list(self._jumps(chain)) if order["drop_jumps"] else []
        for number in reversed(order["drop_jumps"]):
            self._delete(_POSTROUTING, jumps[number])
        if order["delete"]:
            self.table.flush_entries(chain)
            self.table.delete_chain(chain)
        elif order["rewrite"] is not None:
            self.table.flush_entries(chain)
            for options in order["rewrite"]:
                self.table.append_entry(chain, self._entry(options))
        else:
            for _ in range(order["remove"]):
                self._delete(chain, order["keep"])
            for offset, options in enumerate(order["insert"]):
                self.table.insert_entry(chain, self._entry(options), order["keep"] + offset)
        for number, options in enumerate(order["jumps"]):
            if order["jump_first"]:
                self.table.insert_entry(_POSTROUTING, self._entry(options), number)
            else:
                self.table.append_entry(_POSTROUTING, self._entry(options))
        self.table.commit()

    def _jumps(self, chain: str) -> Iterator[int]:
        """Yield the positions in POSTROUTING, from 0, of the rules that lead to ``chain``."""
        entry, position = self.table.first_rule(_POSTROUTING), 0
        while entry:
            if self.table.get_target(entry) == chain.encode():
                yield position
            entry, position = self.table.next_rule(entry), position + 1

    def _delete(self, chain: str, position: int) -> None:
        # python-iptables binds this call of libiptc but has no method for it; its own way
        # compares whole rules, and would have to parse them first.
        if (
            self.table._iptc.iptc_delete_num_entry(chain.encode(), position, self.table._handle)
            != 1
        ):
            raise iptc.IPTCError(f"can't delete rule {position + 1} of {chain}")

    def _entry(self, options: _Options) -> Any:
        """Return a rule as the bytes that libiptc takes."""
        if [name for name, _, _ in options] == ["destination", "jump"] and options[1] == _RETURN:
            # Nearly all rules are of this kind: one rule object serves them all.
            if self._plain is None:
                self._plain = self._rule_class()
                self._plain.create_target("RETURN")
            (self._plain.dst,) = options[0][1]
            return self._plain.rule
        rule = self._build(options)
        rule.final_check()
        return rule.rule

    def _build(self, options: _Options) -> Any:
        rule = self._rule_class()
        module: Any = None  # the match or the target that options belong to
        named = None
        for name, values, negated in options:
            value = ("!" if negated else "") + (values[0] if values else "")
            match = MATCH_OF.get(name)
            if match is not None and match != named:
                module = rule.create_match(match)
            named = match
            if name == "destination":
                rule.dst = value
            elif name == "source":
                rule.src = value
            elif name == "protocol":
                rule.protocol = value
            elif name == "out-interface":
                _set_out_interface(rule, values[0])
            elif name == "jump":
                module = rule.create_target(value)
            elif module is None:
                raise iptc.IPTCError(f"{name} {value} stands before any target")
            else:  # a set comes with a direction
                module.set_parameter(name, values if len(values) > 1 else value or None)
        return rule


def _set_out_interface(rule: Any, name: str) -> None:
    """Have a rule look at one device, whatever its name.

    python-iptables takes ``!`` for a negation, and gives IPv6 a mask of the lowest bit of
    each character: with it eth1 is eth3 as well.
    """
    header = rule.entry.ipv6 if isinstance(rule, iptc.Rule6) else rule.entry.ip
    packed = name.encode(errors="surrogateescape")
    if len(packed) >= _NAME_SIZE:
        raise ValueError(f"{name!r} is too long to name a device")
    header.outiface = packed.ljust(_NAME_SIZE, b"\0")
    header.outiface_mask = (b"\xff" * (len(packed) + 1)).ljust(_NAME_SIZE, b"\0")


def main() -> None:
    """Serve orders until standard input ends."""
    # Ctrl-C reaches the whole process group; the agent decides when its workers end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ.get("IPMASQ_AGENT_PID", os.getppid())):
        return  # the agent died before we could ask to die with it
    # libxtables prints where it likes; answers go out on a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    nat: NatTable | None = None
    for line in sys.stdin:
        try:
            nat = nat or NatTable(sys.argv[1])
            nat.carry_out(json.loads(line))
            answer: dict[str, str] = {}
        except (iptc.IPTCError, iptc.xtables.XTablesError, ValueError, AttributeError) as error:
            answer = {"error": f"refused: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

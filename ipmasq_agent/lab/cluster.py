"""Building a lab, living in it, and taking it down without a trace.

Everything that a lab is has its name in it: namespaces ``ipmasq-NAME-HOST`` and a
directory of state. So a lab whose maker was killed can still be taken down: the processes
in its namespaces are ended, and with a namespace go its links, routes, rules and sysctls.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, TypeVar

from ipmasq_agent.errors import LabError
from ipmasq_agent.host.commands import run
from ipmasq_agent.host.local_socket import get
from ipmasq_agent.lab import frr, netns
from ipmasq_agent.lab.api import kubeconfig
from ipmasq_agent.lab.children import own, tied, without_settings
from ipmasq_agent.lab.interruption import Interruption
from ipmasq_agent.lab.mirror import mirrored
from ipmasq_agent.lab.mounted import mount, mounted
from ipmasq_agent.lab.talk import Talk
from ipmasq_agent.lab.topology import (
    HOSTS,
    NODES,
    POD_CIDRS,
    PODS,
    SYSCTLS,
    Host,
    link_commands,
)

STATE = Path("/run/ipmasq-lab")
_PREFIX = "ipmasq-"
# Says that `ip netns` made its directory a mount because of us, and that it may go with us.
_MOUNT_MARK = STATE / ".netns-mount"
# Seconds: BGP alone takes some, and on a busy machine all take their time.
_PATIENCE = 60.0
T = TypeVar("T")
Condition = Callable[[dict[str, Any]], bool]


def labs() -> list[str]:
    """Return the names of the labs that stand, or of which something is left."""
    names = {
        match[1]
        for name in netns.names()
        if (match := re.fullmatch(rf"{_PREFIX}(.+)-(?:{_HOST_NAMES})", name))
    }
    if STATE.is_dir():
        names |= {entry.name for entry in STATE.iterdir() if entry.is_dir()}
    return sorted(names)


_HOST_NAMES = "|".join(re.escape(host.name) for host in HOSTS)


class Lab:
    """One lab by name. Making this object makes nothing yet."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?", name):
            raise LabError(
                f"{name!r} cannot name a lab", remedy="use up to 30 small letters, digits and -"
            )
        self.name = name
        self.state = STATE / name
        self.namespaces = {host.name: f"{_PREFIX}{name}-{host.name}" for host in HOSTS}
        self.talks: dict[str, Talk] = {}
        self._api: Talk | None = None
        self._processes: list[subprocess.Popen[Any]] = []
        self._lock: IO[str] | None = None

    # -- making and unmaking ------------------------------------------------------------

    def claim(self) -> None:
        """Make this lab ours, after taking down what a killed one of the name left.

        Raises:
            LabError: a lab of this name stands, or is being built.
        """
        self._take_lock("choose another --name")
        if (self.state / "up").exists():
            self._release_lock()
            raise LabError(
                f"the lab {self.name} is up already",
                remedy=f"ipmasq-agent lab down --name {self.name}, or choose another --name",
            )
        if not netns.mounted():
            _MOUNT_MARK.touch()
        self._remove_namespaces()

    @contextlib.contextmanager
    def claimed(self, *, stay: bool) -> Iterator[None]:
        """Claim the lab, and take it down whatever happens, unless all went well and it stays."""
        ours = left = False
        with Interruption() as interruption:
            try:
                # Not before it is known whether there is a lab to take down.
                with interruption.waiting():
                    self.claim()
                    ours = True
                yield
                if stay:
                    self.leave()
                    left = True
            finally:
                interruption.ignore()
                if ours and not left:
                    self.down()

    def take_over(self) -> None:
        """Make a lab ours that its maker has left, to take it down.

        Raises:
            LabError: its maker is still at work in it.
        """
        self._take_lock("stop that `lab run` or `lab up` first, with Ctrl-C")

    def _take_lock(self, remedy: str) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        self._lock = (self.state / "lock").open("w")
        try:
            # The kernel lets go of it when its owner dies, however it dies.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            self._release_lock()
            raise LabError(f"the lab {self.name} is running", remedy=remedy) from cause

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def build(self) -> None:
        """Make namespaces, links, addresses and routes.

        Raises:
            LabError, CommandFailed: with what the kernel refused; ``down`` clears the rest.
        """
        for namespace in self.namespaces.values():
            run(["ip", "netns", "add", namespace])
            run(["ip", "netns", "exec", namespace, "sysctl", "-q", "-w", *SYSCTLS])
        # One program for each stretch of lines of a host: order matters across hosts.
        for host, lines in groupby(link_commands(self.namespaces), key=itemgetter(0)):
            self.ip(host, (line for _, line in lines))
        for node in NODES:
            # As CNI plugins do, so that a pod can reach itself through a service.
            ports = (f"link set dev veth-{pod.name} hairpin on\n" for pod in PODS[node.name])
            argv = ["bridge", "-n", self.namespaces[node.name], "-batch", "-"]
            run(argv, stdin="".join(ports))

    def ip(self, host: str, lines: Iterable[str]) -> None:
        """Run lines of ``ip`` in a host; each tells its family by its addresses."""
        argv = ["ip", "-n", self.namespaces[host], "-batch", "-"]
        run(argv, stdin="".join(f"{line}\n" for line in lines))

    def down(self) -> None:
        """End the lab's processes, then remove its namespaces and its state."""
        self._hang_up()
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        self._remove_namespaces()
        for process in self._processes:
            process.wait()
        self._processes.clear()
        if os.path.ismount(self._pins):
            run(["umount", str(self._pins)])  # what is pinned there goes with it
        shutil.rmtree(self.state, ignore_errors=True)
        self._release_lock()
        if not labs():
            if _MOUNT_MARK.exists():
                netns.unmount_if_empty()
                _MOUNT_MARK.unlink()
            with contextlib.suppress(OSError):
                STATE.rmdir()  # only when no other lab is there

    def _hang_up(self) -> None:
        for talk in (*self.talks.values(), *([self._api] if self._api else [])):
            talk.close()
        self.talks.clear()
        self._api = None

    def _remove_namespaces(self) -> None:
        ours = [name for name in self.namespaces.values() if name in netns.names()]
        inodes = [number for name in ours if (number := netns.inode(name))]
        netns.end_processes(inodes)
        for name in ours:
            run(["ip", "netns", "del", name])
        # Whoever was on the way in while the others were ended holds a nameless one now.
        netns.end_processes(inodes)

    # -- living in it -------------------------------------------------------------------

    def argv(self, host: str, argv: Sequence[str]) -> list[str]:
        """Return ``argv`` made to run in a host.

        Raises:
            LabError: there is no such host.
        """
        self._known(host)
        # A lock of the host's own: on a real node too it is shared by that node's programs
        # only, and the machine's is neither made nor held. `env` gives a shell's exit status
        # where there is no such program.
        lock = f"XTABLES_LOCKFILE={self.state / host}.xtables.lock"
        # The lab's API and no other, and no proxy on the way to it.
        api = [f"KUBECONFIG={self.kubeconfig}", "NO_PROXY=*", "no_proxy=*"]
        # Programs and maps of a host's own; there is one bpf file system for all hosts.
        pins = f"IPMASQ_BPF_PINS={self._pins / host}"
        local = f"IPMASQ_SOCKET={self.socket(host)}"
        set_here = [lock, pins, local, *api, f"NODE_NAME={host}"]
        env = ["env", *without_settings(), *set_here]
        return ["ip", "netns", "exec", self.namespaces[host], *env, *argv]

    def _known(self, host: str) -> None:
        if host not in self.namespaces:
            raise LabError(
                f"there is no host {host!r} in the lab",
                remedy="the hosts are " + ", ".join(h.name for h in HOSTS),
            )

    def run(self, host: str, argv: Sequence[str]) -> str:
        """Run a program in a host and return what it printed."""
        return run(self.argv(host, argv)).stdout

    @property
    def _pins(self) -> Path:
        return self.state / "bpf"

    def mount_pins(self) -> None:
        """Mount the bpf file system on which agents pin their maps and programs.

        Raises:
            CommandFailed: it cannot be mounted.
        """
        self._pins.mkdir()
        run(["mount", "-t", "bpf", "bpf", str(self._pins)])

    def inhabit(self, *, stay: bool) -> None:
        """Start who lives in the hosts; they can be talked to as long as we are there."""
        for host in HOSTS:
            if host.inhabited:
                argv = [*own("ipmasq_agent.lab.inhabitant"), host.name, *host.addresses]
                self.talks[host.name] = self._talk(host.name, argv, stay=stay)
        for name, talk in self.talks.items():
            self._expect(talk, name, name)

    @property
    def kubeconfig(self) -> Path:
        """The credentials for the lab's Kubernetes API."""
        return self.state / "kubeconfig"

    def start_api(self, host: str, address: str, *, stay: bool) -> None:
        """Serve the Kubernetes API in a host, at that address of it."""
        self.kubeconfig.write_text(kubeconfig(address))
        self._api = self._talk(host, own("ipmasq_agent.lab.api"), stay=stay)
        self._expect(self._api, "api", host)

    def _expect(self, talk: Talk, name: str, host: str) -> None:
        if talk.answer() != {"ready": name}:
            raise LabError(f"{name} did not start; see {self.state}/{host}.log")

    def join(self, node: Host) -> None:
        """Make a node one of those that the API knows."""
        assert self._api is not None
        internal, pods = node.links["eth1"].partition("/")[0], POD_CIDRS[node.name]
        self._api.ask(
            name=node.name,
            addresses=[internal, mirrored(internal)],
            pod_cidrs=[pods, mirrored(pods)],
            pods={pod.name: list(pod.addresses) for pod in PODS.get(node.name, ())},
        )

    def start_agent(self, node: str, argv: Sequence[str], *, stay: bool) -> None:
        """Run the agent in a node."""
        self._start(node, argv, stay=stay)

    def start_bgp(self, host: str, config: str, *, stay: bool) -> None:
        """Run FRR in a host; bgpd is given ``config``.

        Raises:
            LabError: it does not take connections; with the end of its log.
        """
        self._start(host, frr.prepared(self.state / f"{host}.frr", config), stay=stay)
        listening = ["ss", "-Hltn", "sport = :bgp"]
        self._until(host, "BGP listens", lambda: self.run(host, listening))

    def learnt_routes(self, host: str, prefixes: Sequence[str]) -> dict[str, str]:
        """Return prefix → next hop of a host's routes by BGP, once they are those ``prefixes``.

        Raises:
            LabError: they never were; with the end of the host's log.
        """
        family = "-6" if ":" in prefixes[0] else "-4"
        argv = ["ip", "-json", family, "route", "show", "proto", "bgp"]

        def learnt() -> dict[str, str]:
            found = {r["dst"]: r.get("gateway", "?") for r in json.loads(self.run(host, argv))}
            return found if found.keys() == set(prefixes) else {}

        return self._until(host, f"it learns the way to {', '.join(prefixes)}", learnt)

    def _talk(self, host: str, argv: Sequence[str], *, stay: bool) -> Talk:
        return Talk(self._start(host, argv, stay=stay, talk=True))

    def _start(
        self, host: str, argv: Sequence[str], *, stay: bool, talk: bool = False
    ) -> subprocess.Popen[Any]:
        inside = self.argv(host, argv)
        with self.log(host).open("ab") as log:
            process = subprocess.Popen(
                inside if stay else tied(inside),
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talk else log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to handle, then we end them
            )
        self._processes.append(process)
        return process

    def documents(self, node: str) -> Path:
        """Return the directory that the agent of a node reads: a mounted ConfigMap."""
        return self.state / node

    def write(self, node: str, keys: Mapping[str, str]) -> None:
        """Give a node its documents, by key."""
        mount(self.documents(node), keys)

    def status(self, node: str) -> dict[str, Any] | None:
        """Return what the agent of a node says of itself; None while it does not answer."""
        told = get(str(self.socket(node)), "/status")
        if told is None:
            return None
        answer: dict[str, Any] = json.loads(told)
        return answer

    def socket(self, node: str) -> Path:
        """Return where the agent of a node listens, and its verbs ask."""
        return self.state / f"{node}.sock"

    def log(self, host: str) -> Path:
        """Return the log of what runs in a host: of a node its agent.

        Raises:
            LabError: there is no such host.
        """
        self._known(host)
        return self.state / f"{host}.log"

    def deliver(self, documents: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
        """Give nodes documents, and return what each agent says once it has taken them in.

        Args:
            documents: node → key → text.

        Raises:
            LabError: an agent never did.
        """
        before = {node: self._revision(node, unless=keys) for node, keys in documents.items()}
        for node, keys in documents.items():
            self.write(node, keys)
        what = "the agent has taken in the document"
        return {node: self.wait_for(node, what, _judged(old)) for node, old in before.items()}

    def _revision(self, node: str, unless: Mapping[str, str]) -> str | None:
        """Return the revision that an agent has; None where its documents are ``unless``."""
        status = self.status(node)
        if status is None or mounted(self.documents(node)) == unless:
            return None
        revision: str | None = status["config"]["revision"]
        return revision

    def wait_for(self, node: str, what: str, condition: Condition) -> dict[str, Any]:
        """Return the agent's status once ``condition(status)`` holds.

        Raises:
            LabError: it never did; with the end of the agent's log.
        """

        def met() -> dict[str, Any] | None:
            status = self.status(node)
            return status if status is not None and condition(status) else None

        return self._until(node, what, met)

    def _until(self, host: str, what: str, look: Callable[[], T | None]) -> T:
        """Look until there is something to be seen, and return it.

        Raises:
            LabError: there never was; with the end of the host's log.
        """
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            seen = look()
            if seen:
                return seen
            time.sleep(0.02)
        log = self.log(host).read_text(errors="replace")
        raise LabError(
            f"{host}: not within {_PATIENCE:g} s: {what}; its log ends with:\n{log[-2000:]}"
        )

    def leave(self) -> None:
        """Let go of this lab, which stays for people to play in."""
        (self.state / "up").touch()
        self._hang_up()
        for process in self._processes:
            process.returncode = 0  # not ours to wait for any more
        self._processes.clear()
        self._release_lock()


def standing(name: str) -> Lab:
    """Return a lab that is there to be used.

    Raises:
        LabError: there is none of the name.
    """
    lab = Lab(name)
    if lab.namespaces["router"] not in netns.names():
        raise LabError(f"there is no lab {name}", remedy="ipmasq-agent lab up")
    return lab


def _judged(revision: str | None) -> Condition:
    """Return whether an agent has an opinion on another document than that revision's."""
    return lambda status: bool(
        status["config"]["revision"] != revision and (status["ready"] or status["config"]["error"])
    )

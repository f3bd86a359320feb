"""An API server with agents behind it: pods page by page, their proxy and exec, ConfigMaps.

It runs in a thread of its own. ConfigMaps are applied as server-side apply has it
(kubernetes.io/docs/reference/using-api/server-side-apply): fields have managers, and to change one
of somebody else's is a conflict.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml
from aiohttp import WSMsgType, web

from ipmasq_agent.sources.canary import tries
from tests.deploy.manifests import DEPLOY
from tests.fleet.agents import Agent
from tests.fleet.real import RealAgent

DEADLINE = 60.0
WATCHED = "/api/v1/namespaces/kube-system/configmaps"
STDOUT, STDERR, ENDED = b"\x01", b"\x02", b"\x03"

# Kind and rule of the roles for people who use the plugin.
RULES = [
    (role["kind"], rule)
    for role in yaml.safe_load_all((DEPLOY / "plugin-roles.yaml").read_text())
    for rule in role["rules"]
]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class ConfigMap:
    """One, with who manages which of its fields."""

    version: int
    data: dict[str, str]
    annotations: dict[str, str] = field(default_factory=dict)
    managers: dict[tuple[str, str], set[str]] = field(default_factory=dict)


class FleetCluster:
    """The server.

    Attributes:
        agents: pod → agent; tests may change them at any time.
        configmaps: by name, as they are now.
        pods: those of the namespace default, by name.
        labels: of nodes, by name.
        requests: method and path of all that was asked.
        ran: node and words of all programs that were run.
        after: called after each request that writes and is not refused, with what it was.
        forbidden: what in a path is answered with 403.
    """

    def __init__(
        self,
        agents: Iterable[Agent],
        document: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.agents = {agent.pod: agent for agent in agents}
        self.configmaps: dict[str, ConfigMap] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.ran: list[tuple[str, ...]] = []
        self.after: Callable[[str], None] = lambda what: None
        self.forbidden: tuple[str, ...] = ()
        self._version = 100
        if document is not None:
            self.put("ip-masq-agent", document)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet")
        self._thread.start()
        self._closing = asyncio.Event()
        self._runner: web.AppRunner
        self.port: int = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(
            DEADLINE
        )

    def put(self, name: str, document: str, manager: str = "kubectl-create") -> None:
        """Write a document as somebody else would."""
        self._version += 1
        managers = {("data", "config"): {manager}}
        self.configmaps[name] = ConfigMap(self._version, {"config": document}, {}, managers)

    def document(self) -> str | None:
        """Return the cluster's document."""
        held = self.configmaps.get("ip-masq-agent")
        return held.data.get("config") if held else None

    def serve(self, listening: socket.socket) -> None:
        """Answer on one more socket, which may be of another network namespace."""

        async def begin() -> None:
            await web.SockSite(self._runner, listening).start()

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(DEADLINE)

    def close(self) -> None:
        """End it."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # In the server's thread

    async def _start(self) -> int:
        app = web.Application(middlewares=[self._guard], client_max_size=4 << 20)
        pods = "/api/v1/namespaces/kube-system/pods"
        maps = "/api/v1/namespaces/kube-system/configmaps/{name}"
        app.router.add_get(pods, self._list)
        app.router.add_get(pods + "/{pod}:{port}/proxy/{path}", self._proxy)
        app.router.add_get(pods + "/{pod}/exec", self._exec)
        app.router.add_get("/api/v1/namespaces/default/pods/{pod}", self._pod)
        app.router.add_get("/api/v1/nodes", self._nodes)
        app.router.add_get(maps, self._get)
        app.router.add_get(WATCHED, self._watch)
        app.router.add_patch(maps, self._patch)
        app.router.add_delete(maps, self._delete)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024, ssl_context=self._tls)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        self._closing.set()
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if any(each in request.path for each in self.forbidden):
            return refusal(403, 'forbidden: User "ops" cannot do that')
        if request.headers.get("Authorization", "").lower() == "bearer agent":
            return await handler(request) if request.path == WATCHED else refusal(403, "agent")
        if lacking := self._lacking(request):
            return refusal(403, lacking)
        if request.headers.get("Authorization", "").lower() != "bearer secret":
            return refusal(401, "Unauthorized")
        if request.method == "GET":
            return await handler(request)
        answer = await handler(request)
        if answer.status == 200:
            self._deliver()
            self.after(f"{request.method} {request.path.rpartition('/')[2]}")
        return answer

    def _lacking(self, request: web.Request) -> str | None:
        """Return what the roles of deploy/ do not allow; None where they do."""
        parts = request.path.split("/")[3:]  # after /api/v1
        namespace, resource, *rest = parts[1:] if parts[0] == "namespaces" else ("", *parts)
        name = rest[0].partition(":")[0] if rest else ""
        if len(rest) > 1:
            resource += f"/{rest[1]}"
        verbs = {"GET": "get" if rest else "list", "PATCH": "patch", "DELETE": "delete"}
        needed = {verbs[request.method]}
        if request.method == "PATCH" and name not in self.configmaps:
            needed.add("create")  # as for a server-side apply of what is not there
        if resource == "pods/exec":
            needed.add("create")
        allowed = {
            verb
            for kind, rule in RULES
            if (kind == "ClusterRole" or namespace == "kube-system")
            and resource in rule["resources"]
            and name in rule.get("resourceNames", [name])
            for verb in rule["verbs"]
        }
        missing = needed - allowed
        return f"no role has {missing} of {resource} {name}" if missing else None

    async def _list(self, request: web.Request) -> web.Response:
        assert request.query["labelSelector"] == "app.kubernetes.io/name=ipmasq-agent"
        start = int(request.query.get("continue", 0))
        pods = [agent.manifest() for agent in self.agents.values()]
        limit = int(request.query.get("limit", len(pods) or 1))
        metadata = {"resourceVersion": str(self._version)}
        if start + limit < len(pods):
            metadata["continue"] = str(start + limit)
        return web.json_response({"metadata": metadata, "items": pods[start : start + limit]})

    async def _nodes(self, request: web.Request) -> web.Response:
        key, _, value = request.query["labelSelector"].partition("=")
        names = [name for name, labels in self.labels.items() if labels.get(key) == value]
        items = [{"metadata": {"name": name}} for name in names]
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})

    async def _pod(self, request: web.Request) -> web.Response:
        found = self.pods.get(request.match_info["pod"])
        return refusal(404, "not found") if found is None else web.json_response(found)

    async def _proxy(self, request: web.Request) -> web.Response:
        agent = self.agents.get(request.match_info["pod"])
        port = int(request.match_info["port"])
        if agent is not None and agent.silent:
            await self._closing.wait()
        if agent is None or agent.dead or agent.port != port:
            return refusal(503, f"error trying to reach service: dial tcp 10.0.0.9:{port}: refused")
        try:
            body = await self._status(agent)
        except OSError as error:
            return refusal(503, f"error trying to reach service: {error.strerror}")
        return web.Response(body=body, content_type="application/json")

    async def _status(self, agent: Agent) -> bytes:
        held = self._meant_for(agent)
        version = str(held.version) if held else "absent"
        document = held.data["config"].encode() if held else None
        if agent.real:
            return await asyncio.to_thread(agent.status, version, document)
        return agent.status(version, document)

    def _deliver(self) -> None:
        for agent in self.agents.values():
            held = self._meant_for(agent)
            agent.deliver(None if held is None else held.data["config"].encode())

    def _meant_for(self, agent: Agent) -> ConfigMap | None:
        """Return the document that an agent goes by, which may be a canary."""
        canary = self.configmaps.get("ip-masq-agent-canary")
        if canary and agent.source.endswith("-canary"):
            nodes = canary.annotations.get("ipmasq-agent/nodes", "")
            if tries(nodes, agent.node):
                return canary
        return self.configmaps.get("ip-masq-agent")

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        agent = self.agents.get(request.match_info["pod"])
        if agent is None or agent.dead:
            return refusal(500, "error dialing backend: dial tcp 10.0.0.9:10250: no route to host")
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await socket.prepare(request)
        if agent.silent:
            await self._closing.wait()
            return socket
        argv, stdin = request.query.getall("command"), b""
        self.ran.append((agent.node, *argv))
        if agent.cuts:
            await socket.send_bytes(STDOUT + b"{")
            await socket.close()
            return socket
        if isinstance(agent, RealAgent):
            await self._run_real(agent, argv, socket)
            return socket
        if "exec 3" in argv[2]:
            for line in agent.lines:
                await socket.send_bytes(STDOUT + line)
            await socket.receive()  # until the other side leaves
            return socket
        if argv[0] == "sh":
            size = int(argv[3])
            while len(stdin) < size:
                message = await socket.receive()
                if message.type is not WSMsgType.BINARY:
                    return socket
                stdin += message.data[1:]
            argv = argv[4:]
        code, out, err = await self._run(agent, argv, stdin)
        await socket.send_bytes(STDOUT + out)
        await socket.send_bytes(STDERR + err)
        await socket.send_bytes(ENDED + json.dumps(ended(code)).encode())
        await socket.close()
        return socket

    async def _run_real(
        self, agent: RealAgent, argv: list[str], socket: web.WebSocketResponse
    ) -> None:
        """Run a program as a kubelet does, which ends standard input with the connection."""
        program = await asyncio.create_subprocess_exec(
            *agent.argv(argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=agent.environment,
        )
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        stdin = program.stdin

        async def feed() -> None:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    stdin.write(message.data[1:])
            stdin.close()

        async def pump(stream: asyncio.StreamReader, channel: bytes) -> None:
            while data := await stream.read(65536):
                await socket.send_bytes(channel + data)

        feeding = asyncio.create_task(feed())
        await asyncio.gather(pump(program.stdout, STDOUT), pump(program.stderr, STDERR))
        code = await program.wait()
        if not socket.closed:
            await socket.send_bytes(ENDED + json.dumps(ended(code)).encode())
            await socket.close()
        feeding.cancel()

    async def _run(self, agent: Agent, argv: list[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        """Return what a program of an agent's container leaves."""
        assert argv[0] == "ipmasq-agent"
        if argv[1] == "status":
            return 0, await self._status(agent), b""
        return agent.run(argv[1], stdin)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """List one ConfigMap, or tell what becomes of it, as agents ask."""
        name = request.query["fieldSelector"].removeprefix("metadata.name=")
        held = self.configmaps.get(name)
        if "watch" not in request.query:
            items = [shown(name, held)] if held else []
            metadata = {"resourceVersion": str(self._version)}
            return web.json_response({"metadata": metadata, "items": items})
        response = web.StreamResponse()
        await response.prepare(request)
        known: int | None = int(request.query["resourceVersion"])
        while not self._closing.is_set() and request.transport is not None:
            held = self.configmaps.get(name)
            if held is None and known is not None:
                version = str(self._version)
                gone = {"name": name, "namespace": "kube-system", "resourceVersion": version}
                known = None
                await send(response, "DELETED", {"metadata": gone})
            elif held is not None and held.version > (known or 0):
                await send(response, "MODIFIED" if known else "ADDED", shown(name, held))
                known = held.version
            await asyncio.sleep(0.05)
        return response

    async def _get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        held = self.configmaps.get(name)
        return web.json_response(shown(name, held)) if held else missing(name)

    async def _patch(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/apply-patch+yaml"
        name, asked = request.match_info["name"], await request.json()
        manager, force = request.query["fieldManager"], request.query.get("force") == "true"
        held = self.configmaps.get(name)
        version = asked["metadata"].get("resourceVersion")
        if version is not None and (held is None or version != str(held.version)):
            return refusal(409, f'configmaps "{name}": the object has been modified')
        fields = {("data", key): value for key, value in (asked.get("data") or {}).items()}
        about = asked["metadata"].get("annotations") or {}
        fields |= {("annotations", key): value for key, value in about.items()}
        held = held or ConfigMap(0, {})
        values = {("data", k): v for k, v in held.data.items()}
        values |= {("annotations", k): v for k, v in held.annotations.items()}
        for each, value in fields.items():
            others = held.managers.get(each, set()) - {manager}
            if others and values[each] != value and not force:
                who = ", ".join(f'conflict with "{other}" using v1' for other in others)
                return refusal(409, f"Apply failed with 1 conflict: {who}: .{'.'.join(each)}")
        if request.query.get("dryRun") == "All":
            return web.json_response(shown(name, held))
        managers: dict[tuple[str, str], set[str]] = {}
        for each in {*values, *fields}:
            those = held.managers.get(each, set()) - {manager}
            if each in fields:
                same = values.get(each) == fields[each]
                managers[each] = (those if same else set()) | {manager}
            elif those or manager not in held.managers.get(each, set()):
                managers[each] = those
        values = {each: fields.get(each, values.get(each, "")) for each in managers}
        self._version += 1
        data = {key: value for (kind, key), value in values.items() if kind == "data"}
        noted = {key: value for (kind, key), value in values.items() if kind == "annotations"}
        self.configmaps[name] = ConfigMap(self._version, data, noted, managers)
        return web.json_response(shown(name, self.configmaps[name]))

    async def _delete(self, request: web.Request) -> web.Response:
        name, asked = request.match_info["name"], await request.json()
        held = self.configmaps.get(name)
        if held is None:
            return missing(name)
        if asked["preconditions"]["resourceVersion"] != str(held.version):
            return refusal(409, "the object has been modified")
        del self.configmaps[name]
        self._version += 1
        return web.json_response({"kind": "Status", "status": "Success"})


async def send(response: web.StreamResponse, kind: str, of: dict[str, Any]) -> None:
    """Send an event of a watch."""
    await response.write(json.dumps({"type": kind, "object": of}).encode() + b"\n")


def refusal(code: int, message: str) -> web.Response:
    """Return an error as API servers give it."""
    status = {"kind": "Status", "status": "Failure", "message": message, "code": code}
    return web.json_response(status, status=code)


def missing(name: str) -> web.Response:
    return refusal(404, f'configmaps "{name}" not found')


def ended(code: int) -> dict[str, Any]:
    """Return the Status with which an exec ends."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def shown(name: str, held: ConfigMap) -> dict[str, Any]:
    """Return a ConfigMap as the API has it."""
    owners: dict[str, dict[str, Any]] = {}
    for (kind, key), managers in held.managers.items():
        for manager in managers:
            owners.setdefault(manager, {}).setdefault(f"f:{kind}", {})[f"f:{key}"] = {}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": "kube-system",
            "resourceVersion": str(held.version),
            "annotations": held.annotations,
            "managedFields": [
                {"manager": each, "operation": "Apply", "fieldsV1": fields}
                for each, fields in owners.items()
            ],
        },
        "data": held.data,
    }

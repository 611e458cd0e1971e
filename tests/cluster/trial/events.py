"""What happens to the market: each kind of event, done and waited for as its doer would."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devloop.protocol import ServiceStatus, State
from tests.cluster import kit
from tests.cluster.kit import client
from tests.cluster.kube import binaries
from tests.cluster.kube.gate import Gate
from tests.cluster.project import Project, Running, a_project

from .figures import Claim, Event
from .market import APPS, PERSON, ROLLED, Market
from .schedule import Step

AGENT = "devloop-agent"
MARK = "devloop.dev/attached"
"""The annotation of a Service that somebody holds."""
CUT = 5.0
"""Seconds for which the developer's machine does not reach the API server."""
DRAINS = 22.0
"""Seconds after the end of an attachment until the last of its connections has been dealt with."""
SETTLES = 3.0
ENDS = ("leave", "engine-gone", "pods-taken", "two-developers")
"""Kinds of events after which connections drain."""
WORKLOADS = {"web": "web", "checkout": "checkout", "prices": "prices", "color": "blue"}
BACK = 60.0
"""Seconds until what a killed engine held is the original's again: its lease is for 30."""
CONFIG = """
[services.web]
command = ["{market}", "serve"]
env = {{ WHO = "local-{user}", HTTP = "8080", GREET = "2525", DRAIN = "0" }}
ports = {{ http = 8080, tcp-greet = 2525 }}
ready = {{ http = "/ready", port = "http", period = "200ms" }}
watch = ["web.reload"]
mode = "{web}"
{attach_web}

[services.checkout]
command = ["{market}", "serve"]
env = {{ WHO = "local-{user}", GRPC = "9090", BACKENDS = "prices:9090 stock:9090", DRAIN = "0" }}
ports = {{ grpc = 9090 }}
ready = {{ tcp = "grpc", period = "200ms" }}
watch = ["checkout.reload"]
mode = "remote"
attach = {{ kind = "intercept", routes = "all" }}

[services.prices]
command = ["{python}", "{apps}/python/prices.py"]
env = {{ WHO = "local-{user}", GRPC = "9090", BACKENDS = "stock:9090", DRAIN = "0" }}
ports = {{ grpc = 9090 }}
ready = {{ tcp = "grpc", period = "200ms" }}
watch = ["prices.reload"]
mode = "remote"
attach = {{ kind = "intercept", routes = "all" }}

[services.color]
command = ["{market}", "serve"]
workload = "deployment/blue"
names = ["color"]
env = {{ WHO = "local-{user}", HTTP = "8080", DRAIN = "0" }}
ports = {{ http = 8080 }}
ready = {{ http = "/ready", period = "200ms" }}
watch = ["color.reload"]
mode = "remote"

[services.shelf]
command = ["{market}", "serve"]
workload = "statefulset/shelf"
env = {{ WHO = "local-{user}", HTTP = "8080", DRAIN = "0" }}
ports = {{ http = 8080 }}
ready = {{ http = "/ready", period = "200ms" }}
watch = ["shelf.reload"]
mode = "remote"
attach = {{ kind = "intercept", routes = "all", way = "pods" }}

[services.worker]
command = ["{python}", "{apps}/python/worker.py"]
env = {{ WHO = "local-{user}" }}
ready = {{ log = "works as" }}
watch = ["worker.reload"]
mode = "remote"
attach = "replace"
"""
BY_COMMAND = ("web", "color")
"""Attached by a command; the others by devloop.toml."""


def write(project: Project, user: str, *, web: str = "remote", attach_web: str = "") -> None:
    """That user's devloop.toml, and the files whose saves reload."""
    market = (binaries.build() / "market").resolve()
    project.config(
        CONFIG.format(market=market, python=sys.executable, apps=APPS, user=user, web=web, attach_web=attach_web)
    )
    for each in ("web", "checkout", "prices", "color", "shelf", "worker"):
        (project.folder / f"{each}.reload").write_text("0")


class Trial:
    """The market, one developer at it, and what has been done so far."""

    def __init__(self, market: Market, project: Project, other: Callable[[], Any], gate: Gate) -> None:
        """`other` opens a second developer's project."""
        self.market = market
        self.project = project
        self.other = other
        self.gate = gate
        self.events: list[Event] = []
        self.claims: list[Claim] = []
        self.running: Running
        self.held: set[str] = set()
        """Services all of whose requests come here."""
        self._last: dict[str, Claim] = {}
        self._up: AbstractAsyncContextManager[Running]
        self._saves = 0

    async def start(self) -> None:
        """`devloop up`."""
        self._up = self.project.up()
        self.running = await self._up.__aenter__()
        await self.running.connected()

    async def end(self) -> None:
        """The engine ends, or has ended."""
        await self._up.__aexit__(None, None, None)

    # The frame of every event.

    @asynccontextmanager
    async def event(self, name: str, *, settle: float = SETTLES) -> AsyncIterator[Event]:
        """What is done in it happened from its beginning until `settle` seconds after its end."""
        event = Event(name, time.time())
        if self.events:
            self.events[-1].until = event.began
        self.events.append(event)
        try:
            yield event
        finally:
            event.ended = time.time()
        # No event tells of what does not happen any more.
        await asyncio.sleep(settle)
        for service in ("web", "checkout", "prices", "color", "shelf"):
            said = self._said(service)
            if said != 0:  # it counts every few seconds: what it says now holds for the time since it has said so last
                self.claims = [
                    replace(each, said=said) if each is self._last.get(service) and each.said == 0 else each
                    for each in self.claims
                ]
            moved = name == f"move {service}"
            claim = Claim(service, service in self.held, event.ended, time.time(), said, moved)
            self.claims.append(claim)
            self._last[service] = claim

    def _said(self, service: str) -> int | None:
        """How many connections still lead to the original, as `status` has it."""
        if service not in self.held:
            return None
        found = self.status(service).attachments
        if not found or any(each.uncounted for each in found):
            return None
        return sum(connections.count for each in found for connections in each.earlier)

    async def do(self, step: Step) -> None:
        """One step of the schedule."""
        doing = getattr(self, step.kind.replace("-", "_"))
        async with self.event(step.name, settle=DRAINS if step.kind in ENDS else SETTLES):
            async with asyncio.timeout(120):
                await (doing(step.service) if step.service else doing())

    # What the developer does.

    def status(self, service: str) -> ServiceStatus:
        return self.running.services[service]

    async def attached(self, service: str, seconds: float = 60) -> None:
        def so() -> bool:
            return [each.phase for each in self.status(service).attachments] == ["attached"]

        await self.running.until(so, f"{service} is attached", seconds)

    async def attach(self, service: str) -> None:
        """It runs here, and takes every request of its Service."""
        await self.project("toggle", service, "local")
        await self.running.until_state(service, State.READY)
        if service in BY_COMMAND:
            await self.project("attach", service, "--all")
        await self.attached(service)
        self.held.add(service)

    async def leave(self, service: str) -> None:
        """The original has its requests again; then the local one ends."""
        self.held.discard(service)
        await self.project("leave", service)
        await self.running.until(lambda: not self.status(service).attachments, f"{service} is left")
        await self.project("toggle", service, "remote")

    async def toggle(self, service: str) -> None:
        """There, and here again."""
        self.held.discard(service)
        await self.project("toggle", service, "remote")
        await asyncio.sleep(1)
        await self.attach(service)

    async def move(self, service: str) -> None:
        """Connections that clients had before are ended between two requests."""
        await self.project("move", service)

    async def reload(self, service: str) -> None:
        """A save."""
        starts = self.status(service).restarts
        self._saves += 1
        (self.project.folder / f"{service}.reload").write_text(str(self._saves))
        await self.running.until(lambda: self.status(service).restarts > starts, f"{service} has reloaded")
        await self.running.until_state(service, State.READY)

    async def crash(self, service: str) -> None:
        """Its process is killed; devloop starts it again."""
        pid, starts = self.status(service).pid, self.status(service).restarts
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await self.running.until(lambda: self.status(service).restarts > starts, f"{service} starts again")
        await self.running.until_state(service, State.READY)
        await self.attached(service)

    async def _kill(self) -> set[str]:
        """`kill -9` of the engine; returns what it held."""
        held, self.held = self.held, set()
        await self.running.crash()
        await self.end()
        return held

    async def engine_killed(self) -> None:
        """`kill -9` of the engine; a second later it is there again, and attaches what it had."""
        held = await self._kill()
        await asyncio.sleep(1)
        await self.start()
        for each in sorted(held):
            await self.attach(each)

    async def engine_gone(self) -> None:
        """`kill -9` of the engine, and nobody comes back before the original has everything again."""
        held = await self._kill()

        async def marked() -> list[str]:
            found = await self.market.objects()
            notes = {each: found[f"Service/{each}"]["metadata"].get("annotations", {}) for each in held}
            return sorted(each for each in held if MARK in notes[each])

        await kit.eventually(marked, [], BACK)
        await self.start()

    async def queue_replaced(self) -> None:
        """The worker runs here in its workload's place, for a while."""
        await self.project("toggle", "worker", "local")
        await self.running.until_state("worker", State.READY)
        await self.attached("worker")
        assert await self.market.size("deployment/worker") == 0
        since = time.time()
        await asyncio.sleep(4)
        self.claims.append(Claim("worker", True, since, time.time()))
        await self.project("toggle", "worker", "remote")
        await self.market.ready("deployment/worker")
        assert await self.market.size("deployment/worker") == 1

    async def pods_taken(self) -> None:
        """A StatefulSet whose clients go by its pods' names: its requests are taken in its pods, for a while."""
        await self.attach("shelf")
        since = time.time()
        await asyncio.sleep(4)
        self.claims.append(Claim("shelf", True, since, time.time()))
        await self.leave("shelf")

    async def two_developers(self, service: str) -> None:
        """Somebody else takes the requests that are theirs, and leaves by Ctrl-C."""
        headers = ", ".join(f'{name} = "{value}"' for name, value in PERSON.items())
        attach = f'attach = {{ kind = "intercept", ports = ["http"], routes = [{{ headers = {{ {headers} }} }}] }}'
        with self.other() as project:
            write(project, "ben", web="local", attach_web=attach)
            async with project.up(service) as running:

                def attached() -> bool:
                    found = running.services.get(service)
                    return found is not None and [each.phase for each in found.attachments] == ["attached"]

                try:
                    await running.until(attached, "ben is attached", 30)
                except pytest.fail.Exception:
                    raise AssertionError(f"ben is not attached: {running.services[service].attachments}") from None
                since = time.time()
                await asyncio.sleep(4)
                self.claims += [
                    Claim(f"{service}-ben", True, since, time.time()),
                    Claim(service, False, since, time.time()),
                ]

    # What happens to the cluster.

    async def agent_killed(self) -> None:
        """With no time to end."""
        core = client.CoreV1Api(self.market.admin)
        pod = await core.read_namespaced_pod(AGENT, self.market.namespace)
        before = len(self.running.phases)
        await core.delete_namespaced_pod(AGENT, self.market.namespace, grace_period_seconds=0)
        await kit.until_gone(core.read_namespaced_pod, AGENT, self.market.namespace, uid=pod.metadata.uid)
        await self.running.until(lambda: self.running.phases[before:], "the link is lost")
        await self.running.connected()
        for each in sorted(self.held):
            await self.attached(each)

    async def rollout(self, service: str) -> None:
        """New pods, one after the other."""
        workload = f"deployment/{WORKLOADS[service]}"
        patch = f'{{"spec":{{"template":{{"metadata":{{"annotations":{{"{ROLLED}":"{time.time_ns()}"}}}}}}}}}}'
        await self.market.kubectl("patch", workload, "--type=merge", "--patch", patch)
        await self.market.ready(workload)

    async def scale_to_zero(self, service: str) -> None:
        """The original's pods go while everything is answered here, and come again."""
        workload = f"deployment/{WORKLOADS[service]}"
        size = await self.market.size(workload)
        await self.market.kubectl("scale", workload, "--replicas=0")
        await kit.eventually(lambda: self.market.pods(WORKLOADS[service]), [])
        await asyncio.sleep(1)
        await self.market.kubectl("scale", workload, f"--replicas={size}")
        await self.market.ready(workload)

    async def apply(self, service: str) -> None:
        """The original Service and its workload, as a pipeline applies them."""
        await self.market.apply(f"service/{service}", f"deployment/{WORKLOADS[service]}")
        await self._settled(service)

    async def port_renamed(self, service: str) -> None:
        """Its first port has another name for a while."""
        name = await self.market.kubectl("get", "service", service, "--output=jsonpath={.spec.ports[0].name}")
        for each in (f"{name}-x", name):
            patch = f'[{{"op":"replace","path":"/spec/ports/0/name","value":"{each}"}}]'
            await self.market.kubectl("patch", "service", service, "--type=json", "--patch", patch)
            await asyncio.sleep(2)
            await self._settled(service)

    async def service_deleted(self, service: str) -> None:
        """Deleted and made anew."""
        await self.market.kubectl("delete", "service", service)
        await self.market.apply(f"service/{service}")
        await self._settled(service)

    async def api_server_cut(self) -> None:
        """For the developer's machine alone."""
        before = len(self.running.phases)
        with self.gate.closed(CUT):
            await self.running.until(lambda: self.running.phases[before:], "the link is lost")
            await asyncio.sleep(CUT)
        await self.running.connected()
        for each in sorted(self.held):
            await self.attached(each)

    async def _settled(self, service: str) -> None:
        """Attached again, if it was; its engine may not have seen yet that it is not."""
        await asyncio.sleep(1)
        if service in self.held:
            await self.attached(service)


def second_project(folder: Path, kubeconfig: Path, namespace: str) -> Callable[[], Any]:
    """Opens the other developer's project, each time in a folder of its own."""
    number = iter(range(1000))
    return lambda: a_project(folder / f"ben-{next(number)}", kubeconfig, namespace)

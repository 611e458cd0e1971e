"""One container of a pod: its process, started again as the pod's policy says, and its probes."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from devloop.agent.tasks import background
from devloop.local.process import Holder
from devloop.remote.workload.model import Object

from . import probes
from .command import Command, Lines, Pipe, Start
from .objects import now
from .status import State

DELAYS = (0.1, 10.0)
"""Seconds before a container is started again: the first time, and the longest after it was doubled each time."""
STEADY_SECONDS = 10.0
"""A container that ran for so long begins anew with the shortest delay."""
GRACE_SECONDS = 2.0
"""The most that a container gets to end by itself, whatever `terminationGracePeriodSeconds` says."""


class LostError(Exception):
    """The process that holds the pod was killed, and everything in it."""


class Pod(Protocol):
    """What a container needs of its pod."""

    name: str
    item: Object
    stopping: bool

    @property
    def lost(self) -> bool:
        """The process that held it is gone."""

    def job(self, kind: str) -> tuple[Holder, str]:
        """Who runs a command, and a name for it."""

    def publish(self) -> None:
        """Something of a container's state has changed."""

    def log(self, line: str) -> None:
        """A line of its log."""

    async def connect(self, port: int) -> socket.socket:
        """A connection to its address."""

    async def exec(self, container: str, argv: list[str], timeout: float) -> tuple[int, bytes, bytes]:
        """Run a command in a container."""


class Container:
    """A container, its state, and how it is started."""

    def __init__(self, pod: Pod, spec: Object, state: State, start: Start) -> None:
        self.spec = spec
        self.state = state
        self.start = start
        self.began = asyncio.Event()
        """It runs, and its startup probe has passed."""
        self.command: Command | None = None
        self._pod = pod

    async def keep(self, policy: str) -> int:
        """Run it, again and again as its policy says; its last exit code. Raises LostError."""
        state, pod, delay = self.state, self._pod, DELAYS[0]
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            code = await self.once()
            if pod.lost:
                raise LostError
            if pod.stopping or policy == "Never" or (policy == "OnFailure" and code == 0):
                state.over = True
                pod.publish()
                return code
            if loop.time() - began > STEADY_SECONDS:
                delay = DELAYS[0]
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            pod.log(f"container {state.name} {how}; it starts again in {delay:g} s")
            state.wait("CrashLoopBackOff", f"back-off {delay:g} s: {state.name} {how}")
            pod.publish()
            await asyncio.sleep(delay)
            delay = min(delay * 2, DELAYS[1])
            state.restarts += 1

    async def once(self) -> int:
        """Run its command to the end; the exit code, negative for a signal."""
        state, pod = self.state, self._pod
        command = self.command = Command(*pod.job(state.name))
        lines = Lines(pod.log)
        pipe = Pipe(lines.heard)
        try:
            command.start(self.start, (pipe.write, pipe.write), main=state.role == "main", pipes=(pipe,))
        finally:
            pipe.handed_over()
        watching: asyncio.Task[None] | None = None
        problem = await command.started
        since = now()
        if problem:
            pod.log(f"container {state.name}: {problem}")
        else:
            state.state = {"running": {"startedAt": since}}
            state.started = not self.spec.get("startupProbe")
            state.ready = state.started and not self.spec.get("readinessProbe")
            if state.started:
                self.began.set()
            pod.publish()
            if state.role in ("main", "sidecar"):
                watching = background(self._watch(command), name=f"probes of {pod.name}")
        try:
            code = await asyncio.shield(command.ended)
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            command.stop(signal.SIGTERM, GRACE_SECONDS)  # a sidecar that nobody needs any more
        lines.end()
        reason = "Completed" if code == 0 else "StartError" if problem else "Error"
        ended = {"exitCode": code if code >= 0 else 128 - code, "reason": reason, "startedAt": since}
        state.state = state.last = {"terminated": {**ended, "finishedAt": now()}}
        state.started = state.ready = False
        pod.publish()
        return code

    async def _watch(self, command: Command) -> None:
        """Its probes, as long as one process of it runs."""
        state, spec, pod = self.state, self.spec, self._pod

        async def run(argv: list[str], timeout: float) -> int:
            return (await pod.exec(state.name, argv, timeout))[0]

        def once(probe: Object) -> Callable[[], Awaitable[None]]:
            return lambda: probes.look(probe, spec, pod.connect, run)

        def late(text: str) -> None:
            pod.log(f"container {state.name} is not ready: {text}")

        async def stay_ready(probe: Object) -> None:
            while True:
                await probes.until_passed(probe, once(probe), late)
                state.ready = True
                pod.publish()
                reason = await probes.until_failed(probe, once(probe))
                state.ready = False
                pod.publish()
                late(reason)

        async def stay_alive(probe: Object) -> None:
            await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
            reason = await probes.until_failed(probe, once(probe))
            pod.log(f"container {state.name} is not alive: {reason}")
            command.stop(signal.SIGTERM, GRACE_SECONDS)

        if startup := spec.get("startupProbe"):
            await probes.until_passed(startup, once(startup), late)
            self.began.set()
            state.started, state.ready = True, not spec.get("readinessProbe")
            pod.publish()
        async with asyncio.TaskGroup() as group:
            if readiness := spec.get("readinessProbe"):
                group.create_task(stay_ready(readiness))
            if liveness := spec.get("livenessProbe"):
                group.create_task(stay_alive(liveness))

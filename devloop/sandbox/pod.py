"""One pod: a holder, a network and mount namespace of its own, and the containers that run in them."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devloop.agent.tasks import background
from devloop.errors import DevloopError, RemoteError, ServiceError
from devloop.local.process import Holder
from devloop.net.mounts import Bind
from devloop.net.service import ServiceNetwork
from devloop.remote.workload import references as kinds
from devloop.remote.workload.model import Object

from . import volumes
from .command import Command, Start, collect
from .container import DELAYS, GRACE_SECONDS, Container, LostError
from .network import NoHostPorts
from .objects import now
from .prepare import NotStartedError, World, prepare, specs
from .status import State, is_ready, phase, status


class Pod:
    """A pod that runs here. `run` is its whole life; `stop` ends it."""

    def __init__(self, world: World, item: Object, address: str) -> None:
        self.item = item
        self.name = str(item["metadata"]["name"])
        self.address = address
        self.stopping = False
        self._world = world
        self._since = self._changed = now()
        self._states = [self._state(each, init=True) for each in item["spec"].get("initContainers") or []]
        self._states += [self._state(each) for each in item["spec"]["containers"]]
        self._containers: dict[str, Container] = {}
        self._numbers = itertools.count(1)
        self._network: ServiceNetwork | None = None
        self._holder: Holder | None = None
        self._told: tuple[object, ...] = ()
        self._was_ready = False
        self._tasks: set[asyncio.Task[int]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self.publish()

    def _state(self, spec: Object, *, init: bool = False) -> State:
        sidecar = init and spec.get("restartPolicy") == "Always"
        return State(spec["name"], str(spec.get("image", "")), "sidecar" if sidecar else "init" if init else "main")

    # --- What others see -----------------------------------------------------------------------------------------

    @property
    def holder_name(self) -> str:
        """Its holder's; no service of a project has such a name."""
        return f"sandbox/{self.name}"

    @property
    def ready(self) -> bool:
        """All its containers are."""
        return is_ready(self._states) and not self.stopping

    @property
    def over(self) -> bool:
        """It has ended for good."""
        return phase(self._states) in ("Succeeded", "Failed")

    @property
    def done_well(self) -> bool:
        """All its containers have ended, with 0."""
        return phase(self._states) == "Succeeded"

    @property
    def coming(self) -> bool:
        """It is at its first start, and nothing has gone wrong yet."""
        quiet = not any(each.restarts or each.over for each in self._states if each.role == "main")
        return quiet and not (self._was_ready or self.stopping or self.trouble)

    @property
    def trouble(self) -> str:
        """Why it does not run, if there is a reason."""
        for each in self._states:
            waiting = each.state.get("waiting") or {}
            if waiting.get("message"):
                return f"{waiting['reason']}: {waiting['message']}"
        return ""

    @property
    def lost(self) -> bool:
        """The process that held it is gone."""
        return self._network is None or self._network.lost

    async def connect(self, port: int) -> socket.socket:
        """A connection to what listens on its address. Raises OSError and DevloopError."""
        if self._network is None:
            raise ServiceError(f"pod {self.name} does not run")
        return await self._network.inside.connect(port, self.address)

    def log(self, line: str) -> None:
        """A line of its log."""
        self._world.log(self.name, line)

    def publish(self) -> None:
        """Put the pod as it is now among the objects."""
        ready = self.ready
        whole = status(self._states, self.address, self._since, self._changed)
        told = (ready, whole["phase"], self.stopping)
        if told != self._told:
            self._changed = now()
            whole = status(self._states, self.address, self._since, self._changed)
        self._was_ready = self._was_ready or ready
        self.item = self._world.objects.put(kinds.POD, {**self.item, "status": whole})
        if told != self._told:
            self._told = told
            self._world.changed()

    # --- Its life ------------------------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Until all its containers have ended for good, which they may never; whether they have done so well."""
        delay = DELAYS[0]
        while True:
            try:
                await self._open()
                await self._run()
            except NotStartedError as problem:
                self.log(f"does not start: {problem}")
                for each in self._states:
                    each.wait(problem.reason, str(problem))
                self.publish()
            except LostError:
                self.log(f"the process that held it was killed; it starts anew in {delay:g} s")
                await self._let_go()
                for each in self._states:
                    each.restarts += 1
                    each.over = False
                    each.wait("PodInitializing")
                self.publish()
                await asyncio.sleep(delay)
                delay = min(delay * 2, DELAYS[1])
                continue
            await self._let_go()
            return self.done_well

    async def _open(self) -> None:
        """The namespaces, the files and what each container is started with."""
        world = self._world
        if reason := world.why_not():
            raise NotStartedError("CreatePodSandboxError", reason)
        starts, binds, notes = await prepare(world, self.item, self.address)
        for note in notes:
            self.log(note)
        network = ServiceNetwork(self.name, world.router, world.resolver, NoHostPorts(), self.log, hold=0)
        try:
            self._holder = world.holders.get(self.holder_name)
            await network.open(self._holder, (self.address,))
        except ServiceError as problem:
            world.no_namespaces(problem.what)
            raise NotStartedError("CreatePodSandboxError", problem.what) from problem
        except DevloopError as problem:
            raise LostError from problem
        self._network = network
        try:
            failed = await network.mount(binds)
        except DevloopError as problem:
            raise LostError from problem
        if failed:
            text = "; ".join(f"{target}: {why}" for target, why in failed.items())
            raise NotStartedError("CreateContainerError", f"can't mount {text}")
        by_name = {each["name"]: each for each in specs(self.item)}
        self._containers = {
            each.name: Container(self, by_name[each.name], each, starts[each.name])
            for each in self._states
            if each.name in by_name
        }

    async def _run(self) -> None:
        """The containers: init containers one by one, then the others side by side. Raises LostError."""
        policy = str(self.item["spec"].get("restartPolicy") or "Always")
        sidecars = []
        lost = False
        try:
            async with asyncio.TaskGroup() as group:
                for each in tuple(self._containers.values()):
                    if each.state.role == "sidecar":
                        sidecars.append(group.create_task(each.keep("Always")))
                        await each.began.wait()
                    elif each.state.role == "init" and await each.keep("Never" if policy == "Never" else "OnFailure"):
                        break
                else:
                    main = [each for each in self._containers.values() if each.state.role == "main"]
                    await asyncio.gather(*(group.create_task(each.keep(policy)) for each in main))
                for task in sidecars:
                    task.cancel()
        except* LostError:
            lost = True
        if lost:
            raise LostError

    # --- What runs in it besides ---------------------------------------------------------------------------------

    def start_of(self, container: str, argv: Sequence[str]) -> Start:
        """How a command is started in a container. Raises RemoteError if it does not run."""
        found = self._containers.get(container)
        if found is None or self.lost or "running" not in found.state.state:
            raise RemoteError(f"container {container} of pod {self.name} does not run")
        return Start(argv, found.start.env, found.start.cwd)

    def job(self, kind: str) -> tuple[Holder, str]:
        """Who runs a further command, and a name for it. Raises RemoteError."""
        if self._holder is None:
            raise RemoteError(f"pod {self.name} does not run")
        return self._holder, f"{kind}-{next(self._numbers)}"

    async def exec(self, container: str, argv: Sequence[str], timeout: float) -> tuple[int, bytes, bytes]:
        """Run a command in a container to its end; -1 if it could not be started.

        Raises RemoteError and TimeoutError.
        """
        how = self.start_of(container, argv)
        return await collect(*self.job("exec"), how, timeout)

    async def add_ephemeral(self, spec: Object, argv: Sequence[str], more: Mapping[str, str]) -> None:
        """Start an ephemeral container (core/v1 EphemeralContainer), with `more` variables. Raises RemoteError."""
        if self._network is None:
            raise RemoteError(f"pod {self.name} does not run")
        pod_spec = self.item["spec"]
        declared = {each["name"]: each for each in pod_spec.get("volumes") or []}
        places = self._world.places(self.name)
        binds = []
        for mount in spec.get("volumeMounts") or []:
            try:
                source = volumes.folder_of(declared[mount["name"]], self._world.objects, places, [])
            except (KeyError, ValueError) as problem:
                raise RemoteError(f"volume {mount['name']} can't be mounted: {problem}") from problem
            binds.append(Bind(str(source), mount["mountPath"], bool(mount.get("readOnly"))))
        failed = await self._network.mount(binds)
        if failed:
            raise RemoteError(f"can't mount {', '.join(failed)}: {next(iter(failed.values()))}")
        state = State(spec["name"], str(spec.get("image", "")), "ephemeral")
        self._states.append(state)
        env = {**self._world.base, **more, "HOSTNAME": self.name}
        container = self._containers[state.name] = Container(self, spec, state, Start(argv, env, Path("/")))
        there = pod_spec.get("ephemeralContainers") or []
        self.item = {**self.item, "spec": {**pod_spec, "ephemeralContainers": [*there, spec]}}
        self.publish()
        task = background(container.once(), name=f"{state.name} of {self.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Its end -------------------------------------------------------------------------------------------------

    async def stop(self, life: asyncio.Task[Any] | None) -> None:
        """End it: SIGTERM, then SIGKILL after its grace. `life` is the task of `run`."""
        self.stopping = True
        self.item = {**self.item, "metadata": {**self.item["metadata"], "deletionTimestamp": now()}}
        self.publish()
        asked = self.item["spec"].get("terminationGracePeriodSeconds")
        grace = GRACE_SECONDS if asked is None else min(float(asked), GRACE_SECONDS)
        running = self._commands()
        for command in running:
            command.stop(signal.SIGTERM, grace)
        if running:
            await asyncio.wait([each.ended for each in running], timeout=grace + 2)
        tasks = (*self._tasks, *([life] if life is not None else []))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._let_go()
        await asyncio.gather(*self._closing)

    async def _let_go(self) -> None:
        """Of its namespaces and its holder, with whatever is left in them."""
        # A task of its own: who cancels the pod's life must not stop it half way.
        closing = asyncio.create_task(self._close(), name=f"end of {self.name}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        await asyncio.shield(closing)

    async def _close(self) -> None:
        network, self._network = self._network, None
        holder, self._holder = self._holder, None
        left = self._commands()
        for command in left:
            command.stop(signal.SIGKILL)
        if left:
            await asyncio.wait([each.ended for each in left], timeout=GRACE_SECONDS)
        if network is not None:
            await network.close()
        if holder is not None:
            self._world.holders.release(self.holder_name)
        if network is not None:
            network.remove_made()

    def _commands(self) -> list[Command]:
        """Its containers' processes that run."""
        commands = [each.command for each in self._containers.values() if each.command is not None]
        return [each for each in commands if not each.ended.done()]

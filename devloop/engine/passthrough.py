"""The remote half of an engine: what it asks of the remote, and what comes back as events and statuses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from devloop.config.model import SECOND, Attach, AttachKind, Mode, Project, Remote
from devloop.core import events as ev
from devloop.core.service import ServiceLife
from devloop.engine.asked import Asked
from devloop.engine.remote import Outside, RemoteSide
from devloop.errors import RemoteError, UsageError
from devloop.failures import contained
from devloop.local.probes import Connect
from devloop.protocol import (
    AttachmentStatus,
    EarlierConnections,
    RemoteStatus,
    RequestBatch,
    RequestRecord,
    ServiceStatus,
    State,
    Variable,
)
from devloop.remote.imports import imported

if TYPE_CHECKING:
    from devloop.engine.attaching import Attaching
    from devloop.engine.engine import Engine
    from devloop.remote.link import Link

LEAVE_SECONDS = 10.0
"""How long the original pods may take to have their traffic again, before everything else stops."""


DRAIN_SECONDS = 5.0
"""How long what is under way to a local service may take before its process is stopped, as the remote has it now."""


class Passthrough:
    """One engine's; only where the project has a remote."""

    def __init__(self, engine: Engine, remote: Remote) -> None:
        self._engine = engine
        outside = Outside(
            is_local=self._is_local,
            opened=self._opened,
            failed=lambda service, what, hint: engine.dispatch(ev.WorldFailed(service, what, hint)),
            outdated=lambda service, why: engine.dispatch(ev.WorldChanged(service, why)),
            status=engine.publish,
            services=engine.publish_all,
            served=lambda service: engine.served(service, time.monotonic_ns()),
            linked=self._linked,
            say=lambda service, line: engine.logs.say(service, line),
            notice=lambda level, text, hint: engine.notice(level, text, hint=hint),
        )
        self.side = RemoteSide(engine.project, remote, engine.holders, engine.state, outside)
        self._connect = True
        self._link: Link | None = None
        self._attaching: Attaching | None = None
        self._making = asyncio.Lock()
        self._about_to: dict[str, int] = {}
        """Services that are about to be attached as devloop.toml says, since when (Unix time)."""
        self._afterwards: dict[str, Mode] = {}
        """The modes of services that are about to be left."""
        self._local: dict[str, bool] = {}
        """Service → whether it was local when connections to it were looked at last."""
        self._going: set[str] = set()
        """Services that are to be local no more: new connections go to the remote already."""

    def start(self, *, connect: bool) -> None:
        """Begin to connect; without `connect` only when something is to go through the link, and nothing is local."""
        self._connect = connect
        self._engine.holders.expect_namespaces()
        self.side.start(connect=connect)

    async def leave_all(self) -> None:
        """Give all traffic back before the services that answer it stop. What can't be in time is the agent's to do.

        Not so what replaces a workload: that comes back when its stand-in has ended, so that a queue never has two
        consumers.
        """
        if self._attaching is not None:
            try:
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._attaching.leave_all(but_for=AttachKind.REPLACE.value)
            except TimeoutError:
                text = "the cluster does not answer: what is attached there is put back when its lease ends"
                self._engine.notice("warning", text)

    async def close(self) -> None:
        """End all of it."""
        if self._attaching is not None:
            await self._attaching.close()
        await self.side.close()

    @property
    def holds(self) -> bool:
        """Whether any service holds traffic."""
        found = self._attaching
        return found is not None and any(map(found.attached, self._engine.project.services))

    # What clients see.

    def status(self) -> RemoteStatus:
        """The connection."""
        return self.side.status()

    def decorated(self, status: ServiceStatus, life: ServiceLife) -> ServiceStatus:
        """A service's status with what the remote has to do with it."""
        name = status.name
        standing = self.side.standing(name)
        return replace(
            status,
            modes=self.modes(name),
            published=self.side.here.published(name),
            workload=standing.workload.reference if standing and standing.workload else "",
            notes=self.side.here.notes(name) if life.mode is Mode.LOCAL else (),
            attachments=self._attachments(name),
            earlier=self.side.here.moving.earlier(name),
        )

    def _attachments(self, service: str) -> tuple[AttachmentStatus, ...]:
        found = self._attaching.statuses(service) if self._attaching else ()
        spec = self._engine.project.services.get(service)
        since = self._about_to.get(service)
        if since is None or spec is None or any(each.phase == "attaching" for each in found):
            return found
        # There is more to come, for who waits for it: what, is known once the remote has been looked at.
        return (*found, AttachmentStatus(spec.attach.kind.value, service, "attaching", since))

    def modes(self, service: str) -> tuple[str, ...]:
        """Those that a key goes through."""
        other = Mode.REMOTE if self.side.can_be_remote(service) else Mode.OFF
        return (Mode.LOCAL.value, other.value)

    def world(self, service: str) -> dict[str, Any]:
        """What a service has of its workload."""
        standing = self.side.standing(service)
        return {
            "workload": standing.workload.reference if standing and standing.workload else "",
            "mounts": [mount.to_json() for mount in self.side.here.mounts(service)],
            "notes": list(self.side.here.notes(service)),
        }

    def recent_requests(self, service: str, limit: int) -> list[RequestRecord]:
        """The last requests that went through its attachments."""
        return self._attaching.recent(service, limit) if self._attaching else []

    # What the engine tells.

    def around(self, service: str) -> Around:
        """What the service's processes have of the remote."""
        return Around(self.side, service)

    def gate(self, life: ServiceLife) -> None:
        """Say what becomes of new connections to a service, by its state."""
        over = not life.wanted or life.state in (State.FAILED, State.CRASH_LOOP, State.COMPLETED)
        ready = life.state is State.READY
        self.side.here.set_gate(life.spec.name, ready, not over, life.mode is Mode.LOCAL or not life.gone)
        self._follow(life.spec.name)
        if self._attaching is not None:
            # One that has crashed is a gap that the original pods fill at once; a reload is none.
            running = ready or not (over or life.state is State.BACKOFF)
            self._attaching.set_running(life.spec.name, running, life.since / SECOND if ready else None)

    def reconfigure(self, project: Project) -> None:
        """A new devloop.toml is in force."""
        before = self.side.project.services
        self.side.reconfigure(project)
        for name, spec in project.services.items():
            if name in before and before[name].attach != spec.attach:
                self._engine.task(self._attach_anew(name))

    async def before_local(self, service: str) -> None:
        """The service is about to become local. Where it replaces its workload, that has to end first."""
        if self._replaces(service) and self.side.here.network(service) is not None:
            await self._attach(service, self._engine.project.services[service].attach)

    def _follow(self, service: str) -> None:
        """Connections that clients of this machine hold follow the service."""
        local = self._is_local(service)
        if self._local.setdefault(service, local) is not local:
            self._local[service] = local
            self.side.here.moving.toggled()

    @contextlib.asynccontextmanager
    async def going(self, service: str) -> AsyncIterator[None]:
        """For who toggles a service away from here: its process is to be stopped within.

        New connections go to the remote already, and what is under way on others has ended, or has had DRAIN_SECONDS.
        """
        self._going.add(service)
        try:
            self._follow(service)
            await self.side.here.moving.drained(service, DRAIN_SECONDS)
            yield
        finally:
            self._going.discard(service)
            self._follow(service)

    def moved(self, service: str) -> None:
        """The service has become local: it is attached as devloop.toml says, once it has a world."""
        if self.side.here.network(service) is not None:
            self._engine.task(self._attach_by_itself(service))

    # Attachments.

    async def attach(self, service: str, asked: Asked) -> list[str]:
        """Attach a service. Raises DevloopError. What dead ones held of it and was put back first, a sentence each."""
        attach = asked.of(self._engine.project.services[service].attach)
        if not self._is_local(service):
            raise UsageError(
                f"{service} is not local, so there is nothing to lead its traffic to",
                hint=f"`devloop toggle {service} local` first",
            )
        dead = await self._attach(service, attach, take_over=asked.take_over)
        for each in dead:
            self._engine.notice("info", each, service=service)
        if self._attaching is not None:
            await self._attaching.counted(service)  # who asks is to hear what still goes past
        return dead

    async def leave(self, service: str, mode: Mode | None = None) -> None:
        """Give a service's traffic back. Raises DevloopError if the cluster can't be reached.

        What stands in for a workload is stopped first (a queue never has two consumers), and is then in this mode;
        None: remote, if it can be.
        """
        if self._attaching is not None:
            self._afterwards[service] = mode or Mode(self.modes(service)[1])
            try:
                await self._attaching.leave(service)
            finally:
                self._afterwards.pop(service, None)

    async def _end_stand_in(self, service: str) -> None:
        """Nothing of a service runs here when this returns."""
        engine = self._engine
        life = engine.supervisor.services.get(service)
        if life is None or engine.supervisor.stopping:  # the shutdown has ended it
            return
        if service not in self._afterwards:  # nobody has asked for it
            text = f"{service} is stopped here, for the workload that it stood in for runs again"
            engine.notice("warning", text, hint=f"`devloop toggle {service} local` replaces it again", service=service)
        if life.mode is Mode.LOCAL:
            engine.dispatch(ev.ModeRequested(service, self._afterwards.get(service) or Mode(self.modes(service)[1])))
        await engine.until_gone(service)

    async def move(self, service: str, *, force: bool) -> tuple[int, tuple[EarlierConnections, ...], tuple[str, ...]]:
        """Have connections made anew that lead to where a service was before it was toggled or attached, with no
        request lost, or with `force` at once. How many, what is left, and notes. Raises DevloopError."""
        ended = self.side.here.moving.end(service, force=force)
        if self._attaching is None:
            return ended, self.side.here.moving.earlier(service), ()
        there, left, notes = await self._attaching.move(service, force=force)
        return ended + there, (*self.side.here.moving.earlier(service), *left), notes

    async def _attach(self, service: str, attach: Attach, *, take_over: bool = False) -> list[str]:
        found = await self._ready_to_attach()
        standing = await self.side.until_standing(service)
        life = self._engine.supervisor.services.get(service)
        if life is not None:
            self.gate(life)  # a new one does not know yet whether it runs
        spec = self._engine.project.services[service]
        return await found.attach(spec, standing, attach, take_over=take_over)

    async def _ready_to_attach(self) -> Attaching:
        async with self._making:
            if self._attaching is None:
                await self.side.until_prepared()
                if self._link is None or not hasattr(self._link, "api"):
                    raise UsageError(
                        "only a cluster's traffic can be attached to", hint='the project needs kind = "kubernetes"'
                    )
                await imported("devloop.engine.attaching")
                from devloop.engine.attaching import Attaching

                engine = self._engine
                self._attaching = Attaching(
                    self._link,  # type: ignore[arg-type]  # a KubernetesLink has `api`
                    str(engine.project.root),
                    engine.project.user,
                    self.side.here.ports,
                    self.side.here.listening,
                    self.side.here.listening_datagrams,
                    engine.publish_one,
                    lambda requests: engine.publish(RequestBatch(tuple(requests))),
                    engine.served,
                    self._end_stand_in,
                    self._run,
                )
                self._attaching.start()
                for life in engine.supervisor.services.values():
                    self.gate(life)
            return self._attaching

    async def _run(self, pod: str, container: str, command: Sequence[str]) -> bytes:
        """What a command prints in a pod of the remote's first namespace. RemoteError, if it may not be run."""
        from devloop.remote.workload.cluster import AbsentError
        from devloop.remote.workload.model import Absence

        clusters = (await self.side.until_prepared()).clusters
        try:
            return (await next(iter(clusters.values())).run(pod, container, command)).stdout
        except AbsentError as absent:
            if absent.absence is Absence.FORBIDDEN:
                what = "no command may be run in pods (the Role devloop-attach: create and get pods/exec)"
                raise RemoteError(what, hint=absent.hint) from absent
            raise

    async def _attach_by_itself(self, service: str) -> None:
        spec = self._engine.project.services.get(service)
        try:
            if spec is not None and spec.attach.kind is not AttachKind.INGEST and self._is_local(service):
                await self._attach(service, spec.attach)
        except Exception as problem:
            error = contained(problem, f"{service} can't be attached")
            self._engine.notice("error", f"not attached: {error.what}", hint=error.hint or "", service=service)
        finally:
            if self._about_to.pop(service, None) is not None:
                self._engine.publish_one(service)

    def _will_attach(self, service: str) -> None:
        spec = self._engine.project.services.get(service)
        if spec is not None and spec.attach.kind is not AttachKind.INGEST and self._is_local(service):
            self._about_to[service] = time.time_ns()

    async def _attach_anew(self, service: str) -> None:
        again = self.replaced(service) and self._replaces(service) and self._is_local(service)
        try:
            if again or self._attaching is None:
                await self.leave(service)
            else:
                await self._attaching.leave(service, stop=False)
        except Exception as problem:
            error = contained(problem, f"{service} can't leave")
            self._engine.notice("warning", error.what, hint=error.hint or "", service=service)
        if again:
            try:
                await self.before_local(service)
            except Exception as problem:
                error = contained(problem, f"{service} can't be attached")
                self._engine.notice("error", f"not attached: {error.what}", hint=error.hint or "", service=service)
                return
            self._engine.dispatch(ev.ModeRequested(service, Mode.LOCAL))
        await self._attach_by_itself(service)

    # What the remote tells.

    def _is_local(self, service: str) -> bool:
        life = self._engine.supervisor.services.get(service)
        return self._connect and life is not None and life.mode is Mode.LOCAL and service not in self._going

    def _opened(self, service: str) -> None:
        if self._replaces(service) and self._is_local(service):
            self._engine.task(self._replace_first(service))
        else:
            self._will_attach(service)
            self._engine.dispatch(ev.WorldOpened(service))
            self._engine.task(self._attach_by_itself(service))

    def _replaces(self, service: str) -> bool:
        spec = self._engine.project.services.get(service)
        return spec is not None and spec.attach.kind is AttachKind.REPLACE

    async def _replace_first(self, service: str) -> None:
        """The workload's last pod has ended before the process starts that stands in for it."""
        try:
            await self._attach(service, self._engine.project.services[service].attach)
        except Exception as problem:
            error = contained(problem, f"{service} can't be attached")
            self._engine.dispatch(ev.WorldFailed(service, f"not attached: {error.what}", error.hint or ""))
        else:
            self._engine.dispatch(ev.WorldOpened(service))

    def replaced(self, service: str) -> bool:
        """Whether it stands in for a workload that is stopped."""
        found = self._attaching
        return found is not None and any(each.kind == AttachKind.REPLACE for each in found.statuses(service))

    def _linked(self, link: Link) -> None:
        self._link = link


@dataclass(frozen=True, slots=True)
class Around:
    """What a service has of the remote, for its runner (`devloop.local.runner.Surroundings`)."""

    side: RemoteSide
    service: str

    def variables(self) -> Iterable[Variable]:
        """Its workload's."""
        return self.side.here.variables(self.service)

    def adapted(self, variables: Iterable[Variable]) -> list[Variable]:
        """All of its variables, as they are right in its network."""
        return self.side.here.adapted(self.service, variables)

    def starts(self) -> None:
        """A process of it is about to start."""
        self.side.here.starts(self.service)

    def connect(self) -> Connect | None:
        """Into its network; None if that is the host's."""
        network = self.side.here.network(self.service)
        on_host = network is not None and network.pid is None
        return None if on_host else partial(self.side.here.connect, self.service)

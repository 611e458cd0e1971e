"""All attachments of one engine: made, kept, and taken back.

Each has a task that brings the cluster to what is wanted (`_ensure`, which can be called at any time and does what is
missing) whenever something has changed: the link, the lease, the Service, the local service. What fails for a
moment is tried again; what others undo is done again a few times, and then left to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from devloop.agent import objects
from devloop.agent.overlap import conflicts
from devloop.agent.request_rate import Compared
from devloop.agent.spec import Spec
from devloop.agent.tasks import background
from devloop.errors import RemoteError
from devloop.failures import contained
from devloop.remote.kubernetes.api import Api, ApiError
from devloop.remote.link import LinkState
from devloop.remote.link import Phase as LinkPhase

from . import mesh, replace, silent
from .attachment import Attachment
from .bridge import Bridge
from .claims import Claims, GoneError, gone, held, version
from .doors import Doors
from .draft import drafted
from .earlier import COUNTING, Earlier, Past, Run
from .encryption import Encryption
from .hearers import Hearers
from .moving import Moved, Mover
from .reaching import BarredError, Reaching
from .releases import Releases, UnsettledError
from .renewals import Renewals
from .seam import AttachError, Holding, LocalEnd, Phase, Wanted
from .session import Session, SessionLostError, understood
from .sizes import Sizes

if TYPE_CHECKING:
    from devloop.remote.kubernetes.agent import KubernetesLink

log = logging.getLogger(__name__)

RETRY_SECONDS = (0.1, 5.0)
SESSION_SECONDS = 30.0
AGAIN_SECONDS = 10
READY_SECONDS = 15.0
ABSENT = "the local service does not run; the original answers"


class Attachments(Hearers):
    """See the module. `instance` tells this engine from others of the same user and host: its project."""

    def __init__(
        self,
        link: KubernetesLink,
        api: Api,
        *,
        user: str,
        host: str,
        instance: str = "",
        run: Run | None = None,
        lease_seconds: int = objects.LEASE_SECONDS,
    ) -> None:
        super().__init__()
        self.api = api
        self.user, self.host, self.instance = user, host, instance
        self._link = link
        self._claims = Claims(api, lease_seconds)
        self._held: dict[str, Attachment] = {}
        self._earlier = Earlier(api, self._claims, run, self._past_doors)
        self._mover = Mover(api, self._earlier)
        self._encryption = Encryption(api)
        self._doors = Doors(api, self._claims, self._held.values)
        self._sizes = Sizes(api, self._claims, self._started)
        self._bridge = Bridge(api, self._claims, self._led, self._agent_gone)
        self._reaching = Reaching(api, run, self._claims.service, self._good_session, self._bar, self._clear)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._releases = Releases(self._claims, self._locks, lambda: self._session)
        self._renewals = Renewals(self._claims, self._renewed, self._unheld)
        self._session: Session | None = None
        self._ready: Session | None = None
        self._opening = asyncio.Lock()
        self._connected = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: list[Callable[[], None]] = []

    @property
    def held(self) -> tuple[Attachment, ...]:
        """Ours, in the order in which they came."""
        return tuple(self._held.values())

    # --- Life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; the link may still be connecting. The agent's Envoy is started, so that a first attach is quick."""
        self._stops.append(self._link.subscribe(self._linked))
        self._linked(self._link.state)
        watching = (self._watching, self._doors.watching, self._bridge.watching, self._reaching.watching)
        for work in (self._renewals.renewing, *watching, self._warm):
            self._hold(background(work(), name=work.__name__))

    def _hold(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _warm(self) -> None:
        with contextlib.suppress(RemoteError, SessionLostError, TimeoutError):
            await self._desk()

    def _linked(self, state: LinkState) -> None:
        if state.phase is LinkPhase.CONNECTED:
            self._connected.set()
            for each in self._held.values():
                each.dirty.set()
            return
        if self._connected.is_set():
            self._connected.clear()
            taken = [each for each in self._held.values() if not each.over and each.spec.service]
            for each in taken:
                if each.state.phase is Phase.ATTACHED:
                    each.become(Phase.OPEN, f"the link is lost, and the original answers: {state.reason}")
            if taken:
                self._hold(background(self._bridge.until(self._connected), name="agent lost"))

    def _away(self) -> None:
        """Envoy at the agent is away, or back. What it does then is the agent's; here it is told."""
        for each in [each for each in self._held.values() if each.task is not None and not each.over]:
            if each.spec.service and self._session is not None and self._session.away:
                if each.state.phase is Phase.ATTACHED:
                    each.become(Phase.OPEN, self._session.away)
            else:
                each.dirty.set()

    def _led(self) -> set[str]:
        """The Services that are led to the agent for us."""
        return {each.spec.service for each in self._held.values() if each.spec.service and not each.over}

    def _agent_gone(self) -> None:
        """Its pod is: the next one has to be ready before a Service is led there."""
        self._ready = None

    async def _desk(self) -> Session:
        """The connection to the agent's desk. AttachError if there is no agent; SessionLostError."""
        async with self._opening:
            await self._link.ready(SESSION_SECONDS)
            session = self._session
            if session is None or self._lost():
                ssh = await self._link.best()
                if ssh is None:
                    if self._link.state.phase is not LinkPhase.CONNECTED:
                        raise SessionLostError("the link is lost")
                    why = "; ".join(self._link.state.notes) or "the link is plain port-forwards"
                    raise AttachError(f"traffic needs the agent: {why}", where=self.api.where)
                session = Session(ssh, self._heard, self._away)
                await session.open()
                self._session = session
            if session.leaving:
                raise SessionLostError("the agent is about to end")
            return session

    # --- Attaching ----------------------------------------------------------------------------------------------------

    async def attach(self, wanted: Wanted, local: LocalEnd) -> Attachment:
        """Attach; returns when traffic comes, or for a `replace` when the workload's pods have gone.

        HeldError if somebody else holds it; AttachError if it can't be, with what to do; RemoteError if the cluster
        can't be reached. After an error nothing is left of it, or its lease until that is so.
        """
        began = await self._draft(wanted)
        await self._releases.free(began)
        found = Attachment(began, wanted, local, self._changed)
        if began.id in self._held:
            raise AttachError("it is attached already", where=wanted.service or wanted.workload)
        self._held[began.id] = found
        found.uncounted = COUNTING if began.service and began.kind != "replace" else ""
        try:
            for attempt in range(3):
                try:
                    await self._ensure(found)
                    break
                except SessionLostError as problem:
                    if attempt == 2:
                        raise RemoteError(str(problem), where=self.api.where) from problem
        except BaseException as problem:
            if self._held.get(began.id) is found:
                del self._held[began.id]
            error = problem if isinstance(problem, RemoteError) else None
            try:
                await asyncio.shield(self._releases.begin(found))
            except UnsettledError as more:
                if error is not None:
                    error = RemoteError(f"{error.what}; and {more.what}", where=error.where, hint=more.hint)
            except (RemoteError, OSError, TimeoutError) as more:
                log.info("what %s has changed is not put back yet: %s", began.id, more)
            found.become(Phase.REFUSED, error.what if error is not None else "")
            if error is None or error is problem:
                raise
            raise error from problem
        found.stop = found.local.subscribe(found.dirty.set)
        found.task = found.hold(background(self._keep(found), name=f"attachment {began.id}"))
        found.hold(background(self._earlier.watching(found), name=f"connections from before of {began.id}"))
        if began.service:
            found.hold(background(self._reaching.keeping(found), name=f"who reaches {began.id}"))
            found.hold(background(self._reaching.foreseeing(found), name=f"who will reach {began.id}"))
        if found.ended is not None and found.ended.secrets:
            work = self._encryption.watching(found, lambda: None if self._lost() else self._session)
            found.hold(background(work, name=f"certificates of {began.id}"))
        if began.kind == "replace":
            found.hold(background(self._sizes.watching(found), name=f"size of {began.workload}"))
        return found

    async def move(self, found: Attachment, *, force: bool = False) -> Moved:
        """End connections that clients had before, between two requests or at once. AttachError, RemoteError."""
        return await self._mover.move(found, force=force)

    async def _past_doors(self, attachment: str) -> Mapping[str, Past]:
        answer = await (await self._desk()).ask(do="earlier", id=attachment)
        with understood(self.api.where):
            compared = dict(answer.get("compared") or {})  # an older agent gives none
            return {
                str(pod): Past(
                    {str(client): int(number) for client, number in by.items()}, Compared.read(compared.get(pod))
                )
                for pod, by in answer["pods"].items()
            }

    async def _draft(self, wanted: Wanted) -> Spec:
        return await drafted(self._claims, wanted, self.user, self.host, self.instance)

    async def _ensure(self, found: Attachment) -> None:
        """Bring the cluster to what is wanted, from wherever it is; what is there already is left as it is."""
        spec = found.spec
        async with self._locks[spec.service or spec.workload]:
            # Also without a Service: after kill -9 it is the agent that puts a workload back.
            session = await self._desk() if spec.service or found.task is None else None
            service, leases = await asyncio.gather(self._service(spec), self._claims.leases())
            await self._claims.check(spec, leases)
            replicas = await self._remembered(found, leases)
            swapped = service is not None and spec.way == "service"
            kept = objects.record(objects.swapped(service, _none(service), {})) if service and swapped else None
            key = self._link.key
            await self._claims.acquire(spec, key=key, replicas=replicas, kept=kept)
            if session is not None and service is not None:
                if swapped:
                    await self._claims.shadow(service)
                else:
                    await self._claims.mark(spec, key, service)
                led = swapped and objects.is_whole(service, spec.id)
                if swapped and found.task is None:
                    found.mesh = await mesh.look(self.api, service, spec.ports)
                tls = await self._encryption.prepare(found, session, service)
                try:
                    listeners, unreached = await session.attach(
                        spec, found.end, lambda: self._answered(found), probe=swapped and not led, tls=tls
                    )
                except AttachError:
                    raise
                except RemoteError as problem:
                    if why := await self._reaching.out_of():
                        raise RemoteError(f"{problem.what}: {why}", where=problem.where) from problem
                    raise
                owned = objects.owners(service)
                if unreached:
                    refusal = await self._reaching.refusal(owned, unreached)
                    if refusal.known or found.task is None:
                        raise refusal
                found.listeners = listeners
                if not swapped and found.task is None:
                    await self._reaching.check_doors(found, owned)
                elif swapped and not led:
                    await self._reaching.check(found, owned, listeners, probed=True)
                found.barred = ""
                found.told = (session, True, (), ())
                await self._told(found, session)
                if swapped:
                    await self._agent_ready(session)
                    found.version = await self._claims.lead(spec, listeners, service)
                    await session.led(spec)
                    found.look_again.set()  # if it led elsewhere for a while, who has connected then stays there
                else:
                    # Once attached, it waits for pods that come again: they may all be away for a moment.
                    await (self._doors.ready if found.task is None else self._doors.look)(found, session)
                    found.version = 0
                found.gone = False
            elif session is not None:
                # It puts the workload back if this engine can't: so it has to see the lease, which it says by this.
                await session.attach(spec, found.end, lambda: None)
                await session.detach(spec)
            if spec.kind == "replace":
                await self._claims.mark(spec, key, replicas=replicas)  # or the agent would not start it again
                await self._sizes.stop(found)
                if not spec.service:
                    found.version = 0
        self._stands(found)

    async def _agent_ready(self, session: Session) -> None:
        """A Service leads to pods that are ready alone, and the link is there some tenths of a second before."""
        if self._ready is session:
            return
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if any(replace.is_ready(each) for each in await self._bridge.pods()):
                self._ready = session
                return
            if session.lost or session.leaving:
                raise SessionLostError("the agent has gone")
            await asyncio.sleep(0.05)
        raise RemoteError(f"the agent's pod is not ready after {READY_SECONDS:g} s", where=self.api.where)

    def _stands(self, found: Attachment) -> None:
        """Its state, when all is as wanted."""
        if found.over:
            return
        if found.spec.service and self._session is not None and self._session.away:
            found.become(Phase.OPEN, self._session.away)
        elif found.barred:
            found.become(Phase.OPEN, f"{found.barred}; the original answers")
        elif found.unmet:
            found.become(Phase.OPEN, found.unmet)
        elif found.spec.service and not found.local.running:
            found.become(Phase.OPEN, ABSENT if found.spec.fail == "open" else "the local service does not run")
        elif (deaf := (*found.deaf.values(), *found.deaf_datagrams.values())) and len(deaf) == len(
            (*found.spec.ports, *found.spec.datagrams)
        ):
            why = "; ".join(dict.fromkeys(deaf))
            found.become(Phase.OPEN, f"{why}; the original answers" if found.spec.fail == "open" else why)
        else:
            found.become(Phase.ATTACHED)

    def _good_session(self) -> Session | None:
        return None if self._lost() else self._session

    async def _bar(self, found: Attachment, why: str) -> None:
        """Somebody would wait in vain: the original answers, until nobody is in the way. What stands in for a workload
        gives way to it."""
        if found.spec.kind == "replace":
            self._give_up(found, Phase.REFUSED, why)
            return
        async with self._locks[found.spec.service]:
            if found.over:
                return
            found.barred, found.version = why, 0
            if found.spec.way == "service":
                await self._claims.unlead(found.spec.service)
                if (session := self._good_session()) is not None:
                    with contextlib.suppress(RemoteError):  # an agent from before, which does not know this
                        await session.barred(found.spec)
        self._stands(found)

    def _clear(self, found: Attachment) -> None:
        """Nobody is in the way any more, as far as can be told: it is led here again, if that is true."""
        found.version = -1
        found.dirty.set()

    async def _service(self, spec: Spec) -> objects.Document | None:
        if not spec.service:
            return None
        service = await self._claims.service(spec.service)
        if service is None:
            raise gone(spec, self.api.where)
        return service

    async def _remembered(self, found: Attachment, leases: list[objects.Document]) -> int | None:
        """The size that a replaced workload is to have again; None if nothing is replaced."""
        if found.spec.kind != "replace":
            return None
        ours = next((each for each in leases if each["metadata"]["name"] == found.lease), None)
        said = (ours["metadata"].get("annotations") or {}).get(objects.REPLICAS, "") if ours else ""
        before = int(said) if said.isdecimal() else None
        replicas, found.notes = await replace.look(
            self.api, found.spec, before=before, despite_budget=found.wanted.despite_budget
        )
        return replicas

    async def _told(self, found: Attachment, session: Session) -> None:
        """Tell the agent whether the local service runs, if it doesn't know."""
        up, deaf, udp = found.local.running, tuple(found.deaf), tuple(found.deaf_datagrams)
        if found.told != (session, up, deaf, udp):
            await session.tell(found.spec, up, deaf, udp)
            found.told = (session, up, deaf, udp)

    # --- Keeping ------------------------------------------------------------------------------------------------------

    async def _keep(self, found: Attachment) -> None:
        delay = RETRY_SECONDS[0]
        while not found.over:
            await found.dirty.wait()
            found.dirty.clear()
            try:
                known = found.told is not None and found.told[0] is self._session and not self._lost()
                if (found.spec.service and not known) or found.version == -1:
                    await self._ensure(found)
                elif found.spec.service and self._session is not None:
                    await self._told(found, self._session)
                    if found.spec.way == "pods":
                        await self._doors.look(found, self._session)
                    self._stands(found)
            except GoneError as problem:
                self._deleted(found, problem.what)
            except BarredError as problem:
                with contextlib.suppress(RemoteError, OSError, TimeoutError):
                    await self._bar(found, problem.what)
            except AttachError as problem:
                self._give_up(found, Phase.REFUSED, problem.what)
                return
            except Exception as problem:  # a fault of ours too: it is told, and tried again
                error = contained(problem, f"{found.spec.id} can't be kept")
                found.become(Phase.OPEN, f"the original answers: {error.what}")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await found.dirty.wait()
                delay = min(delay * 2, RETRY_SECONDS[1])
                found.dirty.set()
            else:
                delay = RETRY_SECONDS[0]

    def _lost(self) -> bool:
        return self._session is None or self._session.lost or not self._link.holds(self._session.carrier)

    def _renewed(self) -> list[Attachment]:
        """Also while one comes or goes: waiting for pods to end or to be ready can take longer than a lease holds."""
        return [*(each for each in self._held.values() if not each.over), *self._releases.kept]

    def _unheld(self, found: Attachment) -> None:
        """Its lease was over, and somebody has put all back: as if it was attached anew."""
        if not found.over and found.task is not None:
            found.version = -1
            found.dirty.set()

    async def _watching(self) -> None:
        """Notice what others do to our Services."""
        path = f"/api/v1/namespaces/{self.api.namespace}/services"
        while True:
            try:
                listed = await self.api.get(path)
                self._listed(listed)
                seen = str((listed.get("metadata") or {}).get("resourceVersion") or "0")
                async for kind, service in self.api.watch(path, resourceVersion=seen):
                    self._see(kind, service)
                await asyncio.sleep(RETRY_SECONDS[0])
            except ApiError as problem:
                log.info("Services can't be watched: %s", problem.what)
                await asyncio.sleep(RETRY_SECONDS[1])
            except (RemoteError, OSError, TimeoutError):
                await asyncio.sleep(1)

    def _listed(self, listed: objects.Document) -> None:
        """All Services as they are now: of what went while nobody watched, no watch tells."""
        there = {each["metadata"]["name"]: each for each in listed.get("items") or []}
        for each in there.values():
            self._see("ADDED", each)
        for found in [each for each in self._held.values() if each.task is not None and not each.over]:
            if found.spec.service not in there and 0 < found.version < version(listed):
                self._deleted(found, "the Service was deleted")

    def _see(self, kind: str, service: objects.Document) -> None:
        try:
            self._seen(kind, service)
        except Exception as problem:  # of one Service; the others are to be watched
            contained(problem, "a change of a Service can't be followed")

    def _seen(self, kind: str, service: objects.Document) -> None:
        name = service["metadata"]["name"]
        owner = objects.shadows(service)
        marked = objects.spec_of(service) if owner else None
        for found in [each for each in self._held.values() if each.task is not None and not each.over]:
            ours = marked == found.spec if marked is not None else owner == found.spec.service
            if owner and ours and kind == "DELETED":
                found.version = -1
                found.dirty.set()
            if name != found.spec.service or found.version <= 0 or version(service) <= found.version:
                continue
            if kind == "DELETED":
                self._deleted(found, "the Service was deleted")
            elif not objects.is_whole(service, found.spec.id):
                who = objects.changed_by(service)
                found.version = version(service)
                ours = who == "devloop"
                text = f"{who or 'somebody'} has changed the Service"
                found.hold(background(self._undone(found, text, ours=ours), name="undone"))

    def _started(self, found: Attachment, what: str, ours: bool) -> None:
        """Somebody has started a workload that is replaced: its pods work beside the local service."""
        found.hold(background(self._undone(found, what, ours=ours, wait=False), name="started"))

    def _deleted(self, found: Attachment, what: str) -> None:
        """The watch tells it, or a call that meets nothing: the shadow Service goes too, and that is told as well."""
        if not found.gone:
            found.gone = True
            found.hold(background(self._undone(found, what), name="deleted"))

    async def _undone(self, found: Attachment, what: str, *, ours: bool = False, wait: bool = True) -> None:
        """Do it again after a moment, a few times; then leave it to them."""
        found.version = -1
        if not ours:
            if found.reverted(time.monotonic()):
                self._give_up(found, Phase.CONTESTED, f"{what} again and again; devloop has given way")
                return
            found.become(Phase.OPEN, f"{what}; it is attached again in a moment")
            if wait and len(found.reverts) > 1:  # at once, when it is the first time: most are no quarrel
                await asyncio.sleep(0.2 * 2 ** len(found.reverts))
        if found.gone:
            if not await self._comes_again(found.spec.service):
                self._give_up(found, Phase.CONTESTED, what)
                return
            found.gone = False
        found.dirty.set()

    async def _comes_again(self, name: str) -> bool:
        """A Service that was deleted may be made anew at once, as `kubectl replace --force` does."""
        for _ in range(AGAIN_SECONDS * 2):
            try:
                if await self._claims.service(name) is not None:
                    return True
            except (RemoteError, OSError, TimeoutError) as problem:
                log.info("the Service %s can't be looked for: %s", name, problem)
            await asyncio.sleep(0.5)
        return False

    def _give_up(self, found: Attachment, phase: Phase, why: str) -> None:
        """It is not held any more; all is put back by a task of its own, which `close` waits for."""
        if self._held.get(found.spec.id) is not found:
            return
        del self._held[found.spec.id]
        found.become(phase, why)
        self._releases.begin(found)

    # --- Leaving ------------------------------------------------------------------------------------------------------

    async def leave(self, found: Attachment, *, stop: bool = True) -> None:
        """Put all back; returns when it is, and what the local service was answering is answered.

        What stands in for a workload is stopped before that starts again, unless `stop` is false: it goes on beside it,
        as an intercept. RemoteError if something of it can't be put back now: that is tried again for a while, and the
        agent does it when the lease is over.
        """
        if self._held.get(found.spec.id) is not found:
            return
        del self._held[found.spec.id]
        found.become(Phase.LEAVING)
        try:
            await asyncio.shield(self._releases.begin(found, stop=stop))
        finally:
            found.become(Phase.LEFT)

    async def holdings(self) -> list[Holding]:
        """Who holds what in this namespace, the oldest first."""
        found = objects.holdings(await self._claims.leases(), datetime.now(UTC))
        return [Holding(spec, over, spec.id in self._held) for spec, over in found]

    async def take_over(self, wanted: Wanted) -> list[Holding]:
        """Put back what dead ones hold of this, so that it can be attached. HeldError if one of them is alive.

        What that was comes back. It takes as long as a lease holds: see `silent.py`."""
        spec = await self._draft(wanted)
        leases = await self._claims.leases()
        now = datetime.now(UTC)
        over = {each.id: seconds for each, seconds in objects.holdings(leases, now)}
        clash = conflicts(spec, [each for each, _ in objects.holdings(leases, now)])
        looked = await silent.watched(self._claims, {objects.lease_name(each) for each in clash}, enough=True)
        if alive := [each for each in clash if objects.lease_name(each) in looked.alive]:
            raise held(spec, alive, {}, self.api.where)
        await self._claims.restore(looked.silent)
        return [Holding(each, over[each.id], mine=False) for each in clash]

    async def close(self) -> None:
        """Leave everything. What can't be put back now is the agent's to do."""
        leaving = (self.leave(each) for each in self.held)
        results = await asyncio.gather(*leaving, return_exceptions=True)
        for each in results:
            if isinstance(each, Exception):
                log.warning("leaving: %s", contained(each, "what is attached can't be put back"))
        await self._releases.close()
        for stop in self._stops:
            stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()


def _none(service: objects.Document) -> dict[int, int]:
    """Listeners that nobody has: to write down what a Service was before it is known where the agent listens."""
    return {each["port"]: -each["port"] for each in service["spec"].get("ports", [])}

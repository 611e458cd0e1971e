"""All attachments of a namespace as the agent knows them: who comes, leaves, is silent. What follows for Envoy is in
`plans.py`; any change makes its configuration anew.

It is also the watchdog. A developer who says nothing for `SILENCE_SECONDS`, or whose connection ends, gets no more
traffic: the original pods do. When their lease is over too, everything is put back (`objects.next_step`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
import urllib.error
from collections.abc import Container, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from typing import Protocol as Seam

from . import entitled, envoy, hello, kube, memory, reach
from .certificates import Termination, memory_folder
from .destinations import EVERYWHERE, DeniedError, Destinations
from .expiry import Expiry
from .forward import Connection
from .gateway import Gateway, GatewayError, RejectedError
from .inbound import Inbound
from .member import Member
from .objects import (
    LEASE_LABEL,
    Snapshot,
    is_broken,
    is_marked,
    lease_name,
    next_step,
    owners,
    stands_for,
)
from .outage import Outage
from .overlap import conflicts
from .paths import leases, listen_path, services
from .plan import socket_path
from .plans import Plans
from .presence import ClusterApi
from .protocols import ENCRYPTED
from .records import service_of
from .spec import Spec
from .tasks import background
from .uplink import Uplink
from .view import NotNowError, RefusedError, View, until

log = logging.getLogger("agent")

Document = dict[str, Any]
_NOTHING: Document = {"metadata": {}, "spec": {}}
SILENCE_SECONDS = 2.0
CHECK_SECONDS = 0.25
ENDPOINT_SECONDS = 2.0
RESTORE_PAUSE = 1.0
SETTLE_SECONDS = 5.0
BACK_PAUSE = 0.1
AGAIN_SECONDS = 0.5
COUNT_SECONDS = 1.0
FADE_SECONDS = 2.0
"""So long after the last connection of one who has left their clusters stay: Envoy tries again what was refused there,
within some hundredths of a second, and answers 503 where the cluster has gone."""
LAST_SECONDS = 1.5
"""How long an agent that was told to end goes on serving, so that the nodes' rules lead elsewhere before it stops; and
then how long it asks those who are still connected to come again."""


class Engine(Seam):
    """A developer's session."""

    def heard(self, lines: list[str]) -> None:
        """Lines of the access log that are about its Services."""

    def leaving(self) -> None:
        """This agent is about to end."""

    def away(self, why: str) -> None:
        """Envoy is away, and why; empty: it is back."""


class Attachments(Plans):
    """See the module."""

    def __init__(
        self,
        api: ClusterApi | None,
        folder: Path,
        binary: str,
        destinations: Destinations = EVERYWHERE,
        runner: Path | None = None,
    ) -> None:
        """`folder`, `binary`, `runner`: see `Gateway`."""
        super().__init__(folder, destinations)
        self.folder = folder
        self._api = api
        self._destinations = destinations
        # A name of its own for each process: on a developer's machine there may be others.
        base = memory_folder()
        # An Envoy in a container of its own outlives this process, and reads the next one's files from the same place.
        own = f"{os.getpid()}-{id(self):x}" if runner is None else hashlib.sha256(bytes(folder)).hexdigest()[:16]
        self._memory = base / f"{memory.PREFIX}{own}" if base is not None else None
        self._gateway = Gateway(folder, binary, self._lines, self._memory, runner)
        self._settled = runner is None
        self._coming: set[Member] = set()
        """Who is let in and is not among the members yet: what they ask for is theirs already."""
        self._engines: set[Engine] = set()
        self._outage = Outage(self._engines, self._lead_back)
        self._dirty = asyncio.Event()
        self._applying = asyncio.Lock()
        self._expiry = Expiry()
        self._tasks: list[asyncio.Task[None]] = []
        self._hurrying: asyncio.Task[None] | None = None
        self._leases: kube.Watched | None = None
        self._woken = asyncio.Event()
        self._ending = False

    async def start(self) -> None:
        """Look at what the namespace holds. Envoy is started when there is something for it to do."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._view = View(self._api, self._changed, self._destinations)
        if self._api is not None:
            path = leases(self._api.namespace)
            self._leases = kube.Watched(self._api, path, self._woken.set, f"labelSelector={LEASE_LABEL}")
        for work, name in ((self._configure, "configure"), (self._watchdog, "watchdog"), (self._restore, "restore")):
            self._tasks.append(background(work(), name=name))

    def _changed(self) -> None:
        self._dirty.set()
        self._woken.set()

    # --- Developers -----------------------------------------------------------------------------------------------

    @property
    def inbound(self) -> Inbound:
        """Datagrams that doors have caught."""
        return self._pods.inbound

    async def warm(self) -> None:
        """A developer may attach something soon."""
        with contextlib.suppress(TimeoutError):
            await self._gateway.start()

    async def attach(
        self, spec: Spec, connection: Connection, owner: object, tls: Mapping[int, Termination | None] | None = None
    ) -> dict[int, int]:
        """Take up an attachment, or one that its developer has told anew; the listeners of its Service.

        `tls`: the ports that speak TLS, and with what it is ended, where it is. Returns when Envoy is ready for the
        Service to be led here. RefusedError; also for one whose lease does not say that it is this
        developer's, and for one that takes what somebody else has.
        """
        member = Member(spec, connection, owner, time.monotonic(), time.monotonic())
        try:
            await self._entitled(member)
            return await self._take_up(member, tls or {})
        finally:
            self._coming.discard(member)

    async def _take_up(self, member: Member, tls: Mapping[int, Termination | None]) -> dict[int, int]:
        """What remains of `attach`, once nobody else has it."""
        spec, connection = member.spec, member.connection
        old = self._members.get(spec.id)
        member.encrypted = frozenset(tls)
        member.tls = {port: each for port, each in tls.items() if each is not None}
        if member.tls and self._memory is None:
            raise RefusedError("the agent's pod has no files in memory (/dev/shm), where keys could be handed to Envoy")
        if old is not None:
            member.targets = old.targets
            member.tls = {port: each.after(old.tls.get(port)) for port, each in member.tls.items()}
            if (old.connection, old.spec) == (connection, spec):
                # Its Service was edited, say: what it is answering goes on.
                member.uplinks, member.taken = old.uplinks, old.taken
            else:
                old.cut()
                await old.close()
        try:
            if spec.way == "pods":
                await self._view.service(spec.service)
                await until(lambda: self._is_given(member))
                if not self._is_given(member):
                    raise NotNowError("the agent does not see yet what stands for it")
                self._enter(member)
                await self.apply(member)
                return {}
            listeners = await self._listeners(spec.service) if spec.service else {}
            for port in spec.ports:
                if port not in listeners:
                    raise RefusedError(f"the Service {spec.service} has no port {port}")
                path = Path(socket_path(str(self.folder), spec.id, port))
                pods = (lambda port=port: self._originals(spec.service, port)) if spec.fail == "open" else None
                encrypted = port in member.encrypted or self._view.protocol(spec.service, port) in ENCRYPTED
                fallback = pods if encrypted or self._view.protocol(spec.service, port) == "tcp" else None
                known = next((each for each in member.uplinks if each.path == path), None)
                if known is not None:
                    known.fallback, known.encrypted = fallback, encrypted
                    continue
                uplink = Uplink(connection, path, listen_path(spec.id, port), fallback, encrypted=encrypted)
                await uplink.listen()
                member.uplinks.append(uplink)
            self._enter(member)
            if spec.service:
                await self._view.endpoints(spec.service)
                await self.apply(member)
        except (GatewayError, TimeoutError) as problem:
            await self._refuse(member)
            raise _refusal(problem) from problem
        except BaseException:
            await self._refuse(member)
            raise
        log.info("%s: %s of %s", spec.who, spec.kind, spec.service or spec.workload)
        return listeners

    def _enter(self, member: Member) -> None:
        if member not in self._coming:
            raise NotNowError("it was taken over while it came")
        self._members[member.spec.id] = member

    async def led(self, attachment: str, connection: Connection) -> None:
        """Its developer has led the Service here; they get its traffic when this returns. RefusedError."""
        member = self._own(attachment, connection)
        if member is None:
            raise NotNowError("it is not attached")
        await until(lambda: self._is_given(member))
        if not self._is_given(member):
            raise NotNowError(f"the Service {member.spec.service} does not name it among its holders")
        try:
            await self.apply()
        except (GatewayError, TimeoutError) as problem:
            if isinstance(problem, RejectedError):
                await self._refuse(member)  # or nobody else's would be taken any more
            raise _refusal(problem) from problem

    # --- Whose they are -------------------------------------------------------------------------------------------

    def _own(self, attachment: str, connection: Connection) -> Member | None:
        """An attachment of this developer's; None if there is none. RefusedError if it is somebody else's."""
        member = self._members.get(attachment)
        if member is not None and member.connection.key != connection.key:
            raise RefusedError("this attachment belongs to another key")
        return member

    async def _entitled(self, member: Member) -> None:
        """RefusedError unless the cluster says that this developer may have it, and nobody else has or is about to: of
        two who come at the same time, the second one hears of the first."""
        spec, connection = member.spec, member.connection
        old = self._members.get(spec.id)
        if old is not None and not old.silent:
            self._own(spec.id, connection)
        name = lease_name(spec)
        seen = self._leases.objects.get(name) if self._leases is not None else None
        why = entitled.missing(seen, spec, connection.key)
        if why:  # the watch may be a moment behind
            why = entitled.missing(await entitled.lease(self._api, name), spec, connection.key)
        if why:
            raise RefusedError(why)
        if spec.way == "pods" and not entitled.has_marker(self._view.services, spec, connection.key):
            await entitled.marked(self._api, spec, connection.key)
        while True:
            others = {each.spec.id: each for each in (*self._members.values(), *self._coming)}
            clashes = conflicts(spec, [each.spec for each in others.values()])
            if not clashes:
                self._coming.add(member)  # with nothing awaited since nobody had it
                return
            for clash in clashes:
                if stands_for(await entitled.lease(self._api, lease_name(clash)), clash):
                    what = " or ".join(map(str, clash.routes))
                    of = clash.service or clash.workload
                    raise RefusedError(f"{clash.who} holds {what} of {of} ({clash.kind}) since {clash.since}")
                # It was taken over, and the watch has not said so yet.
                self._coming.discard(others[clash.id])
                await self._drop(others[clash.id])

    async def unreached(self, spec: Spec) -> list[str]:
        """Original pods that this pod can't connect to, of ports of which it reaches none."""
        if spec.way == "pods" or spec.kind == "replace" or not spec.service:
            return []
        service = await self._view.service(spec.service)
        numbers = [each["port"] for each in service["spec"].get("ports", []) if each.get("protocol", "TCP") == "TCP"]
        return await reach.unreached(self._view.pods(spec.service, number) for number in numbers)

    async def reach(self, attachment: str, connection: Connection) -> list[str]:
        """The same, of one that is attached. Where a pod with a door can't be connected to any more, or can again, its
        door brings connections from now on, or does not. RefusedError."""
        member = self._own(attachment, connection)
        if member is None:
            return []
        if member.spec.way == "pods":
            await self._pods.look_again(member)
            await self._apply_or_later()
        return await self.unreached(member.spec)

    async def barred(self, attachment: str, connection: Connection) -> None:
        """Its Service was led back, as the agent can't reach the original, or clients not the agent. Connections that
        are open here would lose their next request, since it would have to go by a new one to the original: those at
        rest are ended, between two requests, and their clients connect to the original. RefusedError."""
        member = self._own(attachment, connection)
        name = member.spec.service if member is not None else ""
        if name not in self._view.services or (self._hurrying is not None and not self._hurrying.done()):
            return
        await until(lambda: not is_marked(self._view.services.get(name, _NOTHING)))
        if not is_marked(self._view.services.get(name, _NOTHING)):  # who may do that, may have clients connect anew
            self._hurrying = background(self._gateway.hurry(), name="hurry")

    async def look(self, name: str, ports: Mapping[int, tuple[tuple[str, int], ...]], server: str) -> Document:
        """What the original says of itself in TLS, by port: see `hello.Hello`. `ports`: where it is known to be
        reached, by its developer; else as this agent sees it. RefusedError."""
        for address, port in (each for known in ports.values() for each in known):
            try:
                self._destinations.check(address, port)
            except DeniedError as problem:
                raise RefusedError(str(problem)) from None
        await self._view.service(name)
        await self._view.endpoints(name)
        looked = {port: hello.look(known or self._endpoints(name, port), server) for port, known in ports.items()}
        found = await asyncio.gather(*looked.values())
        return {str(port): each.document() for port, each in zip(looked, found, strict=True)}

    async def renew(self, attachment: str, connection: Connection, tls: Mapping[int, Termination]) -> None:
        """A certificate was rotated. RefusedError."""
        member = self._own(attachment, connection)
        if member is None:
            return
        before = dict(member.tls)
        member.tls = {port: each.after(before.get(port)) for port, each in tls.items()}
        try:
            await self.apply()
        except RejectedError as problem:
            member.tls = before
            self._dirty.set()
            raise _refusal(problem) from problem
        except (GatewayError, TimeoutError) as problem:
            self._dirty.set()
            raise _refusal(problem) from problem

    async def doors(self, attachment: str, pods: object, connection: Connection) -> Document:
        """The pods that an attachment is to have now, and how they stand. RefusedError."""
        member = self._own(attachment, connection)
        if member is None or member.spec.way != "pods":
            raise RefusedError("it is not attached by way of pods")
        if await self._pods.ask(member, pods) or not self._pods.complete(member):
            try:  # also when nothing is new: what Envoy refuses is for this developer to hear
                await self.apply()
            except (GatewayError, TimeoutError) as problem:
                if isinstance(problem, RejectedError):
                    await self._refuse(member)  # or nobody else's would be taken any more
                raise _refusal(problem) from problem
        return self._pods.standing(member)

    async def earlier(self, attachment: str, connection: Connection) -> dict[str, Any]:
        """See `Pods.earlier`. RefusedError."""
        member = self._own(attachment, connection)
        if member is None or member.spec.way != "pods":
            raise RefusedError("it is not attached by way of pods")
        return await self._pods.earlier(member)

    async def detach(self, attachment: str, connection: Connection) -> None:
        """Its developer leaves: the original pods have its traffic from now on. RefusedError."""
        member = self._own(attachment, connection)
        if member is not None:
            if member.spec.kind == "replace" and member.spec.service:
                # Its pods are back a moment before the cluster has said so here.
                await until(lambda: all(self._view.pods(member.spec.service, port) for port in member.spec.ports))
            await self._drop(member)

    async def _refuse(self, member: Member) -> None:
        """Nothing is left of it; nor of the same attachment as it was told before."""
        before = self._members.get(member.spec.id)
        if before is not None and before is not member:
            await self._drop(before)
        await self._drop(member)

    async def _apply_or_later(self) -> None:
        """Have Envoy do what follows. Where it can't be told now, it is told again in a moment."""
        try:
            await self.apply()
        except (GatewayError, TimeoutError, OSError) as problem:
            log.warning("%s", problem)
            self._dirty.set()

    async def _drop(self, member: Member) -> None:
        if self._members.get(member.spec.id) is member:
            del self._members[member.spec.id]
            member.fades = time.monotonic()
            self._left.append(member)
        at_address = (each.spec.service for each in self._members.values() if each.spec.way == "service")
        if member.spec.service not in at_address:
            self._claimed.pop(member.spec.service, None)
        await self._apply_or_later()
        # Routes lead elsewhere by now. What is being answered may end, and a stream may last; what waits for the local
        # service waits no longer than its `hold`.
        await member.close()
        if member.spec.datagrams:  # what is on its way back may arrive
            asyncio.get_running_loop().call_later(FADE_SECONDS, self._end_datagrams, member.spec.id)

    def _end_datagrams(self, attachment: str) -> None:
        if attachment not in self._members:
            self.inbound.end_all(attachment)

    def _faded(self, now: float) -> bool:
        """Whether somebody who has left has no connection any more, so that Envoy may forget them."""
        before = len(self._left)
        for each in self._left:
            if each.open:
                each.fades = now
        self._left = [each for each in self._left if now - each.fades <= FADE_SECONDS]
        return len(self._left) < before

    def beat(self, owner: object) -> None:
        """A session is there."""
        now = time.monotonic()
        for each in self._members.values():
            if each.owner is owner:
                each.beaten = now
                if each.silent:
                    each.silent = False
                    log.info("%s answers again", each.spec.who)
                    self._dirty.set()

    async def tell(
        self,
        attachment: str,
        connection: Connection,
        up: bool,
        deaf: frozenset[int] = frozenset(),
        deaf_datagrams: frozenset[int] = frozenset(),
    ) -> None:
        """Its local service has come up, or is down; or takes nothing at some ports of the Service. RefusedError."""
        member = self._own(attachment, connection)
        told = (up, deaf, deaf_datagrams)
        if member is not None and (member.up, member.deaf, member.deaf_datagrams) != told:
            member.up, member.deaf, member.deaf_datagrams = told
            await self._apply_or_later()

    async def left(self, owner: Engine) -> None:
        """A session has ended: what it had stays claimed by its leases, and gets no traffic."""
        self._engines.discard(owner)
        gone = [each for each in self._members.values() if each.owner is owner]
        for each in gone:
            each.silent = True
            each.cut()
        for each in self._left:
            if each.owner is owner:
                each.cut()
        if gone:
            log.info("%s is gone: its traffic goes to the original", gone[0].spec.who)
            await self._apply_or_later()

    def came(self, owner: Engine) -> None:
        """A session has begun."""
        self._engines.add(owner)
        if self._outage.why:
            owner.away(self._outage.why)

    def services_of(self, owner: object) -> set[str]:
        """The Services that a session gets something of."""
        return {each.spec.service for each in self._members.values() if each.owner is owner and self._is_given(each)}

    def holders_of(self, services: Container[str]) -> dict[str, str]:
        """Whose the attachments of these Services are, by their ids."""
        return {each.spec.id: each.spec.who for each in self._members.values() if each.spec.service in services}

    def _lines(self, lines: list[str]) -> None:
        for owner in list(self._engines):
            mine = self.services_of(owner)
            if heard := [each for each in lines if service_of(each) in mine]:
                owner.heard(heard)

    @property
    def busy(self) -> bool:
        """Traffic comes here, or may still: the pod has to stay."""
        marked = any(is_marked(each) for each in self._view.services.values())
        held = self._leases is not None and bool(self._leases.objects)
        return marked or held or bool(self._leaving) or self._pods.busy

    # --- Configuration --------------------------------------------------------------------------------------------

    async def apply(self, trying: Member | None = None) -> None:
        """Make Envoy do what follows from all this. GatewayError, TimeoutError.

        `trying`: who has just come. If Envoy refuses that (a regular expression that isn't RE2's), it is theirs alone.
        """
        async with self._applying:
            self._trying = trying
            try:
                await self._apply()
            except RejectedError:
                raise
            except (GatewayError, OSError, asyncio.CancelledError):
                self._dirty.set()  # who has asked for it may be gone, and it remains to be done
                raise
            finally:
                self._trying = None
            if trying is not None:
                trying.taken = True

    async def _apply(self) -> None:
        self._dirty.clear()
        if not self._settled:
            await self._settle()
        await self._pods.prepare()
        last, left = self._last, self._leaving.kept()
        try:
            plans = self._plans()
            if plans or self._gateway.started:  # datagrams alone don't pass Envoy
                await self._pods.link(plans)
                address = "::" if _ipv6() else "0.0.0.0"
                files = envoy.files(plans, str(self.folder), address=address, memory=str(self._memory or ""))
                await self._gateway.apply(files)
        except BaseException:
            # Envoy goes on as it was. Who leaves would leave behind what it has refused, to be refused again.
            self._last = last
            self._leaving.put_back(left)
            raise
        await self._pods.catch(self._leaving.pods)

    async def _settle(self) -> None:
        """Once: an Envoy that was here before goes on with what it has until it is known what leads here."""
        with contextlib.suppress(TimeoutError, RefusedError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._view.synced()
                for name in [name for name, each in self._view.services.items() if is_marked(each)]:
                    await self._view.endpoints(name)
        self._settled = True

    async def _configure(self) -> None:
        while True:
            await self._dirty.wait()
            try:
                await self.apply()
            except RejectedError as problem:  # the same would be refused again
                log.warning("%s", problem)
                await asyncio.sleep(AGAIN_SECONDS)
            except (GatewayError, TimeoutError, OSError) as problem:
                log.warning("%s", problem)
                await asyncio.sleep(AGAIN_SECONDS)
                self._dirty.set()
            except Exception:  # of one Service's; what comes next is to be taken up
                log.exception("what is attached can't be made Envoy's")
                await asyncio.sleep(AGAIN_SECONDS)

    # --- The watchdog ---------------------------------------------------------------------------------------------

    async def _watchdog(self) -> None:
        looked = counted = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = time.monotonic()
            late, looked = now - looked > 3 * CHECK_SECONDS, now
            if late:
                continue  # this process was not running; what was said meanwhile is read first
            try:
                await self._outage.see(self._gateway.away, ran=self._gateway.ran)
                looked = time.monotonic()
                self._see_who_is_silent(now)
                if self._leaving.due(now) and now - counted > COUNT_SECONDS:
                    counted = now
                    with contextlib.suppress(OSError, TimeoutError):
                        if self._leaving.counted(await self._gateway.connections(), now):
                            self._dirty.set()
                if self._leaving.changes(now) or self._faded(now):
                    self._dirty.set()
            except Exception:  # of one attachment's; the others are watched on
                log.exception("who is there can't be watched")

    def _see_who_is_silent(self, now: float) -> None:
        for each in self._members.values():
            if each.silent or now - each.beaten <= SILENCE_SECONDS:
                continue
            # By a slow line a word of theirs is behind a long answer: whatever comes is a sign of life.
            if each.connection.silence > SILENCE_SECONDS:
                each.silent = True
                log.info("%s does not answer: the original does", each.spec.who)
                self._dirty.set()
                each.cut()

    async def _restore(self) -> None:
        """Put back what nobody holds any more."""
        if self._api is None or self._leases is None:
            return
        await self._view.synced()
        await self._leases.synced.wait()
        while not self._ending:
            self._woken.clear()  # before it is looked: what comes meanwhile is looked at next
            try:
                left = await self._put_back()
            except Exception:  # whatever it is, the next lease that is over has to be seen
                log.exception("putting back")
                left = ENDPOINT_SECONDS
            # Not wait_for: until Python 3.12 it swallows a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, 60.0) + 0.05 if left is not None else 60.0):
                    await self._woken.wait()

    async def _put_back(self) -> float | None:
        """What nobody holds now; after how many seconds it has to be looked at again, if nothing wakes it."""
        assert self._api is not None and self._leases is not None
        now = time.monotonic()
        found = self._leases.objects.values()
        self._expiry.see(found, now)
        dead = self._expiry.over(now)
        seen = Snapshot(tuple(self._view.services.values()), tuple(found))
        soon = False
        # What is seen here may be a moment old, and then it is nothing: the API is asked before anything is done.
        if dead or next_step(seen, dead, vouched=True) is not None:
            try:
                await asyncio.to_thread(kube.restore, self._api, dead)
            except urllib.error.HTTPError as problem:
                log.warning("putting back: %s", kube.error_text(problem))
                soon = problem.code in kube.AGAIN
            except (OSError, HTTPException) as problem:
                log.warning("putting back: %s: %s", type(problem).__name__, problem)
                soon = True
            await asyncio.sleep(RESTORE_PAUSE)
        for name in [name for name, each in self._view.services.items() if is_broken(each)]:
            # Nobody would answer until its holder comes to mend it.
            await asyncio.to_thread(self._back, name)
        soon = await self._forget() or soon
        # As of then: one that has ended since is none of those that are over.
        return ENDPOINT_SECONDS if soon else self._expiry.next(now)

    async def _forget(self) -> bool:
        """Drop members whose lease has gone: they were put back, or somebody else has taken over.

        Whether it has to be looked at again soon: the lease of one who has just come may not be seen here yet, nor may
        any while the API server is away.
        """
        assert self._api is not None and self._leases is not None
        now, soon = time.monotonic(), False
        for each in list(self._members.values()):
            name = lease_name(each.spec)
            if stands_for(self._leases.objects.get(name), each.spec):
                continue
            try:
                if now - each.began > ENDPOINT_SECONDS:
                    found = await entitled.lease(self._api, name)
                    if not stands_for(found, each.spec):
                        await self._drop(each)
                        continue
            except RefusedError as problem:
                log.info("the lease of %s can't be looked for: %s", each.spec.id, problem)
            soon = True
        return soon

    async def fail_open(self) -> None:
        """This pod is about to end: lead every Service back to its pods. The leases stay; their holders come again."""
        self._ending = True
        for each in self._engines:
            each.leaving()  # or they would see what is done here as somebody's who is to be undone
        if self._api is None:
            return
        marked = [each["metadata"]["name"] for each in self._view.services.values() if is_marked(each)]
        doors, *_ = await asyncio.gather(self._pods.leave(), *(asyncio.to_thread(self._back, name) for name in marked))
        # Also when an engine that sees this pod go has led all back: clients are connected here.
        if marked or doors or self._leaving:
            await asyncio.sleep(LAST_SECONDS)
            await self._gateway.drain()
            await asyncio.sleep(LAST_SECONDS)

    async def _lead_back(self) -> None:
        if self._api is not None and not self._ending:
            marked = [name for name, each in self._view.services.items() if is_marked(each)]
            await asyncio.gather(*(asyncio.to_thread(self._back, name) for name in marked))

    def _back(self, name: str) -> None:
        assert self._api is not None
        path = f"{services(self._api.namespace)}/{name}"
        for _ in range(5):
            try:
                found = self._api.call("GET", path)
                if is_marked(found):
                    self._api.call("PUT", f"{path}?{kube.MANAGER}", owners(found))
                return
            except urllib.error.HTTPError as problem:
                log.warning("%s: %s", name, kube.error_text(problem))
                if problem.code not in kube.AGAIN:
                    return
            except (OSError, HTTPException) as problem:
                log.warning("%s: %s: %s", name, type(problem).__name__, problem)
            time.sleep(BACK_PAUSE)

    async def close(self) -> None:
        """End Envoy and the watches."""
        tasks = [*self._tasks, *([self._hurrying] if self._hurrying is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._view.close()
        if self._leases is not None:
            self._leases.close()
        for member in (*self._members.values(), *self._left):
            await member.close()
            member.cut()
        await self._pods.leave()
        await self._gateway.close()


def _refusal(problem: GatewayError | TimeoutError) -> RefusedError:
    """What Envoy refuses, it refuses again; anything else is a moment's."""
    kind = RefusedError if isinstance(problem, RejectedError) else NotNowError
    return kind(str(problem) or "Envoy does not answer")


def _ipv6() -> bool:
    return Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text() != ""

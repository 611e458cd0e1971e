"""Attachments of a project's services: from devloop.toml and keys to `devloop.attach`, and back to clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from devloop.agent.records import NOBODY, ORIGINAL
from devloop.agent.spec import ALL, Header, Match, Route, SpecError, personal
from devloop.agent.tasks import background
from devloop.attach.attachments import Attachments
from devloop.attach.earlier import Run
from devloop.attach.seam import AttachError, Holding, Phase, Wanted
from devloop.config.model import SECOND, Attach, AttachKind, Matching, Service
from devloop.engine.board import unix
from devloop.engine.local_end import Local
from devloop.errors import UsageError
from devloop.failures import contained
from devloop.protocol import AttachmentStatus, EarlierConnections, RequestRecord
from devloop.remote.standing import Standing
from devloop.user import login

if TYPE_CHECKING:
    from devloop.agent.records import Request
    from devloop.attach.attachment import Attachment
    from devloop.net.listeners import Listener
    from devloop.remote.catalog import ClusterService
    from devloop.remote.kubernetes.agent import KubernetesLink

UDP = "/udp"
"""What a port of UDP ends with, as `kubectl` and `docker` write it."""
KEPT = 500
"""Requests of each service that are kept for who asks later."""
COUNT_SECONDS = 3.0
"""How long who attaches waits for the count of connections from before."""
RATE_SECONDS = 5.0
"""Over so long a time a rate is taken."""
TICK_SECONDS = 1.0
"""Between two looks at the rates."""
LOOK_SECONDS = 0.25
"""Between two looks at what attached services listen on: some tens of microseconds each."""


class Attaching:
    """The attachments of one engine's services."""

    def __init__(
        self,
        link: KubernetesLink,
        project: str,
        user: str | None,
        ports: Callable[[str], Any],
        listening: Callable[[str], tuple[Iterable[Listener] | None, float, bool]],
        datagrams: Callable[[str], tuple[Iterable[Listener], frozenset[int]] | None],
        changed: Callable[[str], None],
        requests: Callable[[Sequence[RequestRecord]], None],
        served: Callable[[str, int], None],
        end: Callable[[str], Awaitable[None]],
        run: Run | None = None,
    ) -> None:
        """`user` is a name that somebody has chosen. `ports` gives a service's ports, `listening` what listens on any
        of them now (None: not known), how long a reload may take, and whether nothing else is among them; `datagrams`
        the same by UDP, and at which ports it is reached. `changed` is told of a service whose attachments are news;
        `served` of a service that has answered a request, with the monotonic nanoseconds. `end` stops one for good: its
        workload is about to come back. `run` runs commands in the remote's pods.
        """
        self._user = user or login()
        self._attachments = Attachments(
            link, link.api, user=self._user, host=socket.gethostname(), instance=project, run=run
        )
        self._ports = ports
        self._listening = listening
        self._datagrams = datagrams
        self._changed = changed
        self._requests = requests
        self._served = served
        self._end = end
        self._locals: dict[str, Local] = {}
        self._of: dict[str, dict[str, Attachment]] = defaultdict(dict)
        self._refused: dict[str, dict[str, AttachmentStatus]] = defaultdict(dict)
        self._coming: dict[str, dict[str, AttachmentStatus]] = defaultdict(dict)
        self._kept: dict[str, deque[RequestRecord]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._counts: defaultdict[str, defaultdict[str, deque[tuple[float, Rates]]]] = defaultdict(
            lambda: defaultdict(deque)
        )
        """Service → what it holds traffic of → how many requests came when, by who answered."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: list[asyncio.Task[None]] = []
        self._attachments.subscribe(self._moved)
        self._attachments.subscribe_requests(self._heard)
        self._attachments.subscribe_served(self._answered)

    def start(self) -> None:
        """Begin; the link may still be connecting."""
        self._attachments.start()
        self._tasks = [
            background(self._tick(), name="request rates"),
            background(self._look(), name="what attached services listen on"),
        ]

    async def close(self) -> None:
        """Leave everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._attachments.close()

    def set_running(self, service: str, running: bool, ready_since: float | None) -> None:
        """Whether a service runs, or will in a moment; and since when it is ready, in monotonic seconds."""
        local = self._local(service)
        local.set_ready(ready_since)
        local.set_running(running)

    # What clients ask.

    async def attach(self, spec: Service, standing: Standing, attach: Attach, *, take_over: bool = False) -> list[str]:
        """Attach a service, to each Service that leads to it. Raises DevloopError; what was attached stays.

        With `take_over`, what dead ones hold of it is put back first: a sentence each comes back.

        What is attached otherwise leaves first: other routes, another kind.
        """
        async with self._locks[spec.name]:
            every = wants(spec, standing, attach, self._user)
            held = self._of[spec.name]
            for target in held.keys() - {each.service or each.workload for each in every}:
                await self._attachments.leave(held.pop(target), stop=False)
            # What would take a container in each pod is no reason to give up what comes by an address; it is told.
            headless = {each.name for each in standing.counterparts if not each.addresses}
            optional = headless if any(each.service not in headless for each in every) else set[str]()
            dead: list[str] = []
            for wanted in every:
                try:
                    dead += await self._attach(spec.name, wanted, take_over=take_over)
                except AttachError:
                    if wanted.service not in optional:
                        raise
            return dead

    async def _attach(self, service: str, wanted: Wanted, *, take_over: bool) -> list[str]:
        """To one Service. Raises DevloopError, which its status says too."""
        target = wanted.service or wanted.workload
        routes = tuple(map(str, wanted.routes)) if wanted.service else ()

        def status(phase: Phase, reason: str = "") -> AttachmentStatus:
            return AttachmentStatus(wanted.kind, target, phase.value, time.time_ns(), routes, reason)

        self._refused[service].pop(target, None)
        try:
            if (held := self._of[service].get(target)) is not None:
                if held.wanted == wanted:
                    return []
                if held.wanted.kind == wanted.kind == "replace":
                    raise UsageError(
                        f"{service} replaces {held.wanted.workload} already, in another way",
                        hint=f"`devloop leave {service}` first: its workload can't come back while it runs here",
                    )
                del self._of[service][target]
                await self._attachments.leave(held, stop=False)
            self._coming[service][target] = status(Phase.ATTACHING)
            self._changed(service)
            dead = await self._attachments.take_over(wanted) if take_over else []
            local = self._local(service)
            udp = {port: here for port, here in wanted.ports.items() if str(port).endswith(UDP)}
            local.expect((here for port, here in wanted.ports.items() if port not in udp), udp.values())
            self._look_at(service, local)
            found = await self._attachments.attach(wanted, local)
        except Exception as problem:
            error = contained(problem, f"{target} can't be attached")
            reason = f"{error.what}" + (f" ({error.hint})" if error.hint else "")
            self._refused[service][target] = status(Phase.REFUSED, reason)
            if error is problem:
                raise
            raise error from problem
        else:
            self._of[service][target] = found
            return [gone_in_words(each) for each in dead]
        finally:
            self._coming[service].pop(target, None)
            self._changed(service)

    async def counted(self, service: str) -> None:
        """Wait until the connections that clients had before have been counted once, or that can't be, or is slow."""
        looked = [each.looked.wait() for each in self._of[service].values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COUNT_SECONDS):
                await asyncio.gather(*looked)

    async def move(self, service: str, *, force: bool) -> tuple[int, tuple[EarlierConnections, ...], tuple[str, ...]]:
        """Move connections from before to its Services. How many, what is left, and notes. Raises DevloopError."""
        held = [each for each in self._of[service].values() if each.spec.service and each.spec.kind != "replace"]
        found = [await self._attachments.move(each, force=force) for each in held]
        left = (EarlierConnections(client, number, "original") for each in found for client, number in each.left)
        notes = dict.fromkeys(note for each in found for note in each.notes)
        return sum(each.ended for each in found), tuple(left), tuple(notes)

    async def leave(self, service: str, *, stop: bool = True) -> None:
        """The original pods have all of its traffic again. Raises DevloopError if the cluster can't be reached.

        What stands in for a workload is stopped first, unless `stop` is false."""
        async with self._locks[service]:
            self._refused.pop(service, None)
            held = tuple(self._of.pop(service, {}).values())
            try:
                left = await asyncio.gather(
                    *(self._attachments.leave(each, stop=stop) for each in held), return_exceptions=True
                )
            finally:
                self._changed(service)
            for each in left:  # one that can't leave keeps no other of them
                if isinstance(each, BaseException):
                    raise each

    async def leave_all(self, but_for: str = "") -> None:
        """Services leave, but for those with an attachment of one kind: their requests wait for what comes after.

        What fails now is the agent's to do.
        """
        services = []
        for name, found in self._of.items():
            if any(each.spec.kind == but_for for each in found.values()):
                self._local(name).hand_over()
            elif found:
                services.append(name)
        await asyncio.gather(*(self.leave(name) for name in services), return_exceptions=True)

    def attached(self, service: str) -> bool:
        """Whether it holds anything."""
        return bool(self._of.get(service))

    def recent(self, service: str, limit: int) -> list[RequestRecord]:
        """Its last requests, oldest first."""
        return list(self._kept[service])[-limit:]

    def statuses(self, service: str) -> tuple[AttachmentStatus, ...]:
        """How its attachments stand."""
        found = [
            AttachmentStatus(
                kind=each.spec.kind,
                target=target,
                phase=each.state.phase.value,
                since_at=unix(each.state.since),
                routes=tuple(map(str, each.spec.routes)) if each.spec.service else (),
                reason=each.state.reason,
                notes=each.state.notes,
                earlier=tuple(EarlierConnections(client, number, "original") for client, number in each.earlier),
                earlier_rate=each.earlier_rate,
                uncounted=each.uncounted,
                **self._rates(service, target)._asdict(),
            )
            for target, each in self._of.get(service, {}).items()
        ]
        return (*found, *self._coming.get(service, {}).values(), *self._refused.get(service, {}).values())

    # What `devloop.attach` tells.

    def _local(self, service: str) -> Local:
        found = self._locals.get(service)
        if found is None:
            found = self._locals[service] = Local(lambda: self._ports(service), lambda: self._end(service))
        return found

    def _owner(self, attachment: Attachment) -> str | None:
        for service, found in self._of.items():
            if attachment in found.values():
                return service
        return None

    def _moved(self, attachment: Attachment) -> None:
        service = self._owner(attachment)
        if service is None:
            return
        if attachment.state.phase in (Phase.REFUSED, Phase.CONTESTED):
            target = attachment.spec.service or attachment.spec.workload
            self._refused[service][target] = next(each for each in self.statuses(service) if each.target == target)
            self._of[service].pop(target)
        self._changed(service)

    def _answered(self, attachment: Attachment, at: int) -> None:
        service = self._owner(attachment)
        if service is not None:
            self._served(service, at)

    def _heard(
        self, requests: list[Request], counts: Mapping[str, Mapping[str, int]], holders: Mapping[str, str]
    ) -> None:
        """Requests of our Services: told of every service that holds some of the Service, as that one sees them."""
        holding: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for service, found in self._of.items():
            for target, attachment in found.items():
                holding[target].append((service, attachment.spec.id))
        records = []
        for each in requests:
            for service, mine in holding.get(each.service, ()):
                records.append(_record(each, service, mine, holders))
                self._kept[service].append(records[-1])
        now = time.monotonic()
        for target, answered in counts.items():
            for service, mine in holding.get(target, ()):
                self._counts[service][target].append((now, _shares(answered, mine)))
        if records:
            self._requests(records)

    def _rates(self, service: str, target: str) -> Rates:
        """Per second, over the last seconds."""
        counts = self._counts[service][target]
        since = time.monotonic() - RATE_SECONDS
        while counts and counts[0][0] < since:
            counts.popleft()
        sums = map(sum, zip(*(each for _, each in counts), strict=True)) if counts else (0, 0, 0, 0)
        return Rates(*(round(each / RATE_SECONDS, 1) for each in sums))

    def _look_at(self, service: str, local: Local) -> None:
        listening, hold, own = self._listening(service)
        local.look(listening, time.monotonic(), hold, own=own, datagrams=self._datagrams(service))

    async def _look(self) -> None:
        """Notice what services that have traffic listen on, and what not."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for service in [name for name, found in self._of.items() if found]:
                try:
                    self._look_at(service, self._local(service))
                except Exception as problem:  # of one service; the others are to be looked at
                    contained(problem, f"it is not known what {service} listens on")

    async def _tick(self) -> None:
        shown: dict[str, list[Rates]] = {}
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for service in tuple(self._counts):
                rates = [self._rates(service, target) for target in self._of.get(service, ())]
                if shown.get(service, []) != rates:
                    shown[service] = rates
                    try:
                        self._changed(service)
                    except Exception as problem:
                        contained(problem, f"the rates of {service} can't be told")


class Rates(NamedTuple):
    """Requests by who answered, as one holder sees it: `AttachmentStatus` has the same names."""

    local_rate: float = 0
    original_rate: float = 0
    other_rate: float = 0
    failed_rate: float = 0


def _shares(answered: Mapping[str, int], mine: str) -> Rates:
    """Of the agent's counts (`records.answerer`), to the holder of one attachment."""
    local = answered.get(f"/{mine}", 0)
    original, nobody = answered.get(ORIGINAL, 0), answered.get(NOBODY, 0)
    return Rates(local, original, sum(answered.values()) - local - original - nobody, nobody)


def _record(request: Request, service: str, mine: str, holders: Mapping[str, str]) -> RequestRecord:
    """A request as the holder of one attachment sees it: what another developer's answered is not ours."""
    other = request.answered == "local" and request.by != mine
    return RequestRecord(
        service=service,
        at=int(request.started * SECOND),
        method=request.method,
        path=request.path,
        status=request.status,
        duration=int(request.milliseconds * 1_000_000),
        answered="other" if other else request.answered,
        protocol=request.protocol,
        failed_over=request.failed_over and request.attachment == mine,
        target=request.service,
        by=holders.get(request.by, "") if other else "",
        grpc=request.grpc,
    )


_KINDS: Mapping[AttachKind, Literal["intercept", "wiretap", "replace"]] = {
    AttachKind.INTERCEPT: "intercept",
    AttachKind.WIRETAP: "wiretap",
    AttachKind.REPLACE: "replace",
}


def wants(spec: Service, standing: Standing, attach: Attach, user: str) -> list[Wanted]:
    """What a service asks for: one for each Service that leads to it. Raises UsageError where there is nothing."""
    where = f"services.{spec.name}.attach"
    if attach.kind is AttachKind.INGEST:
        return []
    workload = standing.workload.reference if standing.workload else ""
    try:
        asked = tuple(map(_route, attach.routes))
    except SpecError as problem:
        raise UsageError(str(problem), where=f"{where}.routes") from None
    routes = asked or ((personal(user),) if attach.kind is AttachKind.INTERCEPT else (ALL,))
    plain = Wanted(
        kind=_KINDS[attach.kind],
        local=spec.name,
        routes=routes,
        fail="closed" if attach.fail == "closed" else "open",
        hold=spec.hold / SECOND,
        way="pods" if attach.way == "pods" else None,
        tls=attach.tls,
        workload=workload if attach.kind is AttachKind.REPLACE else "",
    )
    if attach.kind is AttachKind.REPLACE and attach.routes and not attach.takes_all:
        raise UsageError(
            f"a replace takes all requests of {spec.name}, and its routes take some",
            where=where,
            hint=f"`devloop attach {spec.name} --kind replace --routes all`; or intercept it: the workload goes on",
        )
    if attach.kind is AttachKind.REPLACE and not workload:
        raise UsageError(f"{spec.name} stands for no workload that could be replaced", where=where)
    found = []
    for each in standing.counterparts:
        if not each.addresses and attach.kind is AttachKind.REPLACE:
            continue  # headless: its pods are gone, and what asks for their names finds none
        ports: dict[int | str, int] = {}
        for port in each.ports:
            key = next((key for key in (port.name, str(port.port)) if key in attach.ports), None)
            if attach.ports and key is None:
                continue
            chosen = attach.ports.get(key) if key is not None else None
            here = chosen or standing.local_port(each.addresses[0] if each.addresses else standing.virtual, port.port)
            if here:
                ports[port.port] = here
        # Datagrams are taken as a whole and in the pods: only what means that, or nothing else, means them too.
        if attach.ports or not ports or (attach.way == "pods" and attach.takes_all):
            ports |= _datagrams(each, standing, attach)
        if ports:
            found.append(replace(plain, service=each.name, ports=ports))
    if not found:
        if attach.kind is AttachKind.REPLACE:
            return [plain]
        raise _nothing_to_take(spec, standing, attach, where)
    # One workload is stopped once, however many Services lead to it.
    return [each if index == 0 else replace(each, kind="intercept", workload="") for index, each in enumerate(found)]


def _datagrams(service: ClusterService, standing: Standing, attach: Attach) -> dict[int | str, int]:
    """A Service's ports of UDP that are asked for, as `Wanted` has them."""
    found: dict[int | str, int] = {}
    numbers = {str(each.port) for each in service.ports}
    for port in service.udp:
        number = () if str(port.port) in numbers else (str(port.port),)  # it means TCP's, where both have it
        key = next((each for each in (port.name, f"{port.port}{UDP}", *number) if each in attach.ports), None)
        if attach.ports and key is None:
            continue
        chosen = attach.ports.get(key) if key is not None else None
        address = service.addresses[0] if service.addresses else standing.virtual
        if here := chosen or standing.local_udp_port(address, port.port):
            found[f"{port.port}{UDP}"] = here
    return found


def gone_in_words(dead: Holding) -> str:
    """Who held what, and for how long they have not been there."""
    spec = dead.spec
    which = f"{' or '.join(map(str, spec.routes))} of " if spec.service else ""
    return (
        f"put back what {spec.who} held since {spec.since}: {which}{spec.service or spec.workload} ({spec.kind}); they "
        f"have not been there for {dead.over:.0f} s"
    )


def _nothing_to_take(spec: Service, standing: Standing, attach: Attach, where: str) -> UsageError:
    """Why none of the Services that are there can be attached to."""
    alias = next((each for each in standing.counterparts if each.external), None)
    if alias is not None:
        return UsageError(
            f"the Service {alias.name} is an ExternalName: it is another name of {alias.external}, and has no traffic",
            where=where,
            hint=f"attach to what answers there, if that is in this cluster: `names = […]` of services.{spec.name}",
        )
    if not standing.counterparts:
        hint = "an attachment takes the traffic of a Service; is its name another? `names` says which"
        return UsageError(f"no Service of the remote leads to {spec.name}", where=where, hint=hint)
    has = ", ".join(
        f"{each.name} has "
        + (
            " and ".join(
                f"{port.name or 'a port'} ({port.port}{protocol})"
                for ports, protocol in ((each.ports, ""), (each.udp, UDP))
                for port in ports
            )
            or "none"
        )
        for each in standing.counterparts
    )
    asked = f"`ports` names {', '.join(attach.ports)}; " if attach.ports else ""
    return UsageError(
        f"no port of its Services leads to one of {spec.name}'s: {asked}{has}",
        where=where,
        hint=f"`ports` of services.{spec.name} says which it listens on; that of `attach`, which is which",
    )


def _route(rule: Any) -> Route:
    headers = tuple(Header(name, _match(found)) for name, found in rule.headers.items())
    return Route(headers, _match(rule.path) if rule.path else None, rule.method, rule.share, rule.sni)


def _match(matching: Matching) -> Match:
    hows = {"exact": "exact", "prefix": "prefix", "regex": "regex"}
    return Match(hows[matching.how], matching.value)  # type: ignore[arg-type]

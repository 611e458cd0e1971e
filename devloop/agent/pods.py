"""Traffic that comes by way of pods: what each door catches, and Envoy's plans for it.

A pod's traffic is caught while an attachment asks for that pod and its door is there. The door makes its places first,
then Envoy gets a listener for that pod, then the door begins; and it stops before any of that goes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from .addresses import host_port
from .back import plain
from .certificates import Termination
from .destinations import EVERYWHERE, DeniedError, Destinations
from .doors import PORT, Door, DoorLostError, Doors, own_address
from .inbound import Inbound, Taker
from .member import Member, Target
from .paths import listen_path
from .plan import Local, PortPlan, ServicePlan, socket_path
from .protocols import ENCRYPTED, Protocol
from .request_rate import Compared
from .uplink import Uplink
from .view import RefusedError

log = logging.getLogger("agent.pods")

FIRST_LISTENER = 30000
Speaks = Callable[[str, int], tuple[Protocol, Termination | None]]
"""What a Service's port speaks, and with what TLS is ended there."""


class PodWay:
    """See the module. `members` gives all attachments that are entitled; `changed` is called when a door has come or
    gone."""

    def __init__(
        self,
        folder: Path,
        members: Callable[[], Iterable[Member]],
        changed: Callable[[], None],
        destinations: Destinations = EVERYWHERE,
    ) -> None:
        self._folder = folder
        self._destinations = destinations
        self._all = members
        self.inbound = Inbound(self._taker)
        self._doors = Doors(self._expected, changed, self.inbound.carry)
        self._listeners: dict[tuple[str, str, int], int] = {}
        self._ending = False

    @property
    def busy(self) -> bool:
        """There are doors."""
        return bool(self._doors.known)

    def _members(self) -> list[Member]:
        found = [each for each in self._all() if each.targets]
        return sorted(found, key=lambda each: (each.spec.since, each.spec.id))

    def _expected(self, uid: str) -> Collection[str]:
        if self._ending:
            return ()
        return {
            plain(address) for each in self._members() if uid in each.targets for address in each.targets[uid].addresses
        }

    # --- What the engine says -----------------------------------------------------------------------------------------

    async def ask(self, member: Member, documents: object) -> bool:
        """These are the pods now; whether that is news. RefusedError if another Service's attachment has a port."""
        targets = [Target.read(each) for each in documents] if isinstance(documents, list) else []
        for each in targets:
            self._check(member, each)
        try:
            await self._doors.listen()
        except OSError as problem:
            raise RefusedError(f"the agent can't listen for doors: {problem}") from problem
        for each in targets:  # somebody else may have come meanwhile; from here on nothing is awaited
            self._check(member, each)
        wanted = {each.uid: each for each in targets}
        if member.targets == wanted:
            return False
        member.targets = wanted
        return True

    def _check(self, member: Member, target: Target) -> None:
        for address in target.addresses:
            try:  # Envoy connects there, at a port that whoever is in the pod has chosen
                self._destinations.check(address, 0)
            except DeniedError as problem:
                raise RefusedError(f"pod {target.name}: {problem}") from None
        for other in self._members():
            if other.spec.service == member.spec.service or target.uid not in other.targets:
                continue
            theirs = other.targets[target.uid]
            both = [str(each) for each in set(target.ports.values()) & set(theirs.ports.values())]
            both += [f"{each}/udp" for each in set(target.datagrams.values()) & set(theirs.datagrams.values())]
            if both:
                raise RefusedError(
                    f"port {min(both)} of pod {target.name} is intercepted by {other.spec.who} as the Service "
                    f"{other.spec.service}'s, and a pod can't tell by which name it was asked"
                )

    def complete(self, member: Member) -> bool:
        """Every one of its pods is caught."""
        known = self._doors.known
        return all(
            uid in known and known[uid].catches(each.ports.values(), each.datagrams.values())
            for uid, each in member.targets.items()
        )

    def standing(self, member: Member) -> dict[str, Any]:
        """For the engine: where a new door has to knock, and how each pod stands: `caught`, why it can't be, or
        nothing yet."""
        pods: dict[str, str] = {}
        for uid, target in member.targets.items():
            door = self._doors.known.get(uid)
            if door is None:
                pods[uid] = ""
            elif door.catches(target.ports.values(), target.datagrams.values()) and not door.problem:
                pods[uid] = "caught"
            else:
                cut_off = [door.cut_off[own] for own in target.ports.values() if own in door.cut_off]
                pods[uid] = next(
                    filter(None, [door.problem, *cut_off, door.no_datagrams if target.datagrams else ""]), ""
                )
        try:
            address = own_address()
        except OSError as problem:
            raise RefusedError(f"the agent does not know its own address: {problem}") from problem
        return {"agent": host_port(address, PORT), "token": self._doors.token, "pods": pods}

    async def earlier(self, member: Member) -> dict[str, Any]:
        """For the engine, by pod: `pods`, how many connections lead to it past its door, by client: those from before;
        and `compared`, what they carry (`request_rate.Compared`). RefusedError: it can't be known of all."""
        doors = {uid: self._doors.known.get(uid) for uid in member.targets}

        async def one(uid: str, door: Door | None) -> tuple[dict[str, int], Compared | None]:
            target = member.targets[uid]
            if door is None:
                raise RefusedError(f"pod {target.name} has no door that could count them")
            try:
                return await door.count(set(target.ports.values()))
            except DoorLostError as problem:
                raise RefusedError(f"pod {target.name}: {problem}") from problem

        found = dict(zip(doors, await asyncio.gather(*(one(*each) for each in doors.items())), strict=True))
        return {
            "pods": {uid: clients for uid, (clients, _) in found.items()},
            "compared": {uid: each.document() for uid, (_, each) in found.items() if each is not None},
        }

    # --- What follows from it -----------------------------------------------------------------------------------------

    def _wanted(self, door: Door) -> dict[str, dict[int, int]]:
        """By Service, its ports to the pod's."""
        found: dict[str, dict[int, int]] = {}
        for each in () if self._ending else self._members():
            if door.uid in each.targets:
                found.setdefault(each.spec.service, {}).update(each.targets[door.uid].ports)
        return found

    def _datagrams(self, door: Door, *, taken: bool = False) -> set[int]:
        """The pod's UDP ports that somebody asks for; with `taken`, those whose datagrams somebody takes now."""
        return {
            own
            for each in (() if self._ending else self._members())
            if door.uid in each.targets
            for port, own in each.targets[door.uid].datagrams.items()
            if not taken or each.takes_datagrams(port)
        }

    def _taker(self, uid: str, own: int) -> Taker | None:
        for each in self._members():
            if uid in each.targets:
                for port, number in each.targets[uid].datagrams.items():
                    if number == own and each.takes_datagrams(port):
                        return Taker(each.connection, each.spec.id, port)
        return None

    async def prepare(self) -> None:
        """Before Envoy: every door has its places, and catches nothing that nobody asks for any more."""

        async def one(door: Door) -> None:
            ports = {own for ports in self._wanted(door).values() for own in ports.values()}
            try:
                await door.open(ports, self._datagrams(door))
                await door.reach(self._doors.back)
                await door.catch(
                    {own: listener for own, listener in door.caught.items() if own in ports},
                    door.caught_datagrams & self._datagrams(door, taken=True),
                )
            except DoorLostError as problem:
                log.warning("the door at %s: %s", door.address, problem)

        await asyncio.gather(*(one(each) for each in list(self._doors.known.values())))

    def plans(self, speaks: Speaks) -> list[ServicePlan]:
        """One for each pod and Service."""
        found = []
        for door in self._doors.known.values():
            for service, ports in self._wanted(door).items():
                made = tuple(
                    PortPlan(
                        port,
                        self._listener(door, service, port),
                        protocol,
                        (endpoint,),
                        self._also(door) if endpoint[0] == door.address else {},
                        tls,
                    )
                    for port, own in sorted(ports.items())
                    if (endpoint := door.endpoint(own)) is not None
                    for protocol, tls in [speaks(service, port)]
                )
                live = tuple(
                    Local(each.spec, each.up and not each.silent, each.deaf)
                    for each in self._members()
                    if each.spec.service == service and door.uid in each.targets
                )
                if made:
                    # What leads past the policies of a pod is for its door alone.
                    clients = tuple(sorted({door.address, *self._expected(door.uid)}))
                    found.append(ServicePlan(service, made, live, pod=door.tag, clients=clients))
        return found

    def _listener(self, door: Door, service: str, port: int) -> int:
        key = (door.tag, service, port)
        if key not in self._listeners:
            used = set(self._listeners.values())
            self._listeners[key] = next(each for each in itertools.count(FIRST_LISTENER) if each not in used)
        return self._listeners[key]

    async def link(self, plans: Iterable[ServicePlan]) -> None:
        """Also before Envoy: a socket for each developer's part of each pod. Closed with the member."""
        for plan in plans:
            for port in plan.ports if plan.pod else ():
                for member in self._members():
                    spec = member.spec
                    path = Path(socket_path(str(self._folder), spec.id, port.number, plan.at))
                    known = any(each.path == path for each in member.uplinks)
                    if spec.service != plan.name or port.number not in spec.ports or known:
                        continue
                    encrypted = port.protocol in ENCRYPTED
                    plain_tcp = (port.protocol == "tcp" or encrypted) and spec.fail == "open"
                    # The same pod, as of now: a door that has come anew has another place.
                    original = (
                        (lambda tag=plan.pod, number=port.listener: self._original(tag, number)) if plain_tcp else None
                    )
                    target = listen_path(spec.id, port.number)
                    uplink = Uplink(member.connection, path, target, original, encrypted=encrypted)
                    try:
                        await uplink.listen()
                    except OSError as problem:  # the others go on; Envoy finds nobody there, as where it is down
                        log.warning("%s of %s: nothing listens for it: %s", spec.who, spec.service, problem)
                        continue
                    member.uplinks.append(uplink)

    def _also(self, door: Door) -> dict[str, str]:
        """The pod's address of the other family, by the one that its door has come from."""
        other = next((each for each in self._expected(door.uid) if (":" in each) != (":" in door.address)), None)
        return {door.address: other} if other is not None else {}

    def _original(self, tag: str, listener: int) -> list[list[tuple[str, int]]]:
        for (known, service, port), number in self._listeners.items():
            if (known, number) == (tag, listener):
                for door in self._doors.known.values():
                    own = self._wanted(door).get(service, {}).get(port)
                    if door.tag == tag and own is not None and (endpoint := door.endpoint(own)) is not None:
                        also = self._also(door).values() if endpoint[0] == door.address else ()
                        return [[(each, endpoint[1]) for each in (endpoint[0], *also)]]
        return []

    async def catch(self, draining: Collection[str]) -> None:
        """After Envoy: each door catches what is asked for and no more. One that nobody needs ends, when what went
        through it before has had its time; `draining` are the tags of those pods."""

        async def one(door: Door) -> None:
            wanted = self._wanted(door)
            caught: Mapping[int, int] = {
                own: self._listener(door, service, port)
                for service, ports in wanted.items()
                for port, own in ports.items()
                if door.endpoint(own) is not None
            }
            try:
                await door.catch(caught, self._datagrams(door, taken=True) & door.datagram_places)
            except DoorLostError as problem:
                log.warning("the door at %s: %s", door.address, problem)
            if not wanted and door.tag not in draining:
                self._doors.end(door)

        await asyncio.gather(*(one(each) for each in list(self._doors.known.values())))
        there = {each.tag for each in self._doors.known.values()} | set(draining)
        self._listeners = {key: number for key, number in self._listeners.items() if key[0] in there}

    async def look_again(self, member: Member) -> None:
        """Whether its pods can be connected to may be otherwise by now."""
        doors = [each for each in self._doors.known.values() if each.uid in member.targets]
        await asyncio.gather(*(each.reach(self._doors.back, again=True) for each in doors))

    async def leave(self) -> bool:
        """This agent is about to end: every pod's traffic is its own again. Whether there was any."""
        self._ending = True
        was = self.busy
        await self._doors.close()
        return was

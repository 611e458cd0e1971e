"""The agent's end of its doors (`door.py`): who they are, what they were told, and what they have said.

A door comes by itself, from within its pod, and names the pod's uid and the agent's token, which its container was
given. It is taken if an attachment has asked for that pod, if it comes from that pod's address, and if the pod has none
yet. JSON, a line each; the agent asks and the door answers, and both say something each second. Datagrams come by a
second connection of the same door's, whose first line says so (`inbound.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from . import reach
from .back import Back, plain
from .request_rate import Compared
from .strangers import Strangers
from .tasks import background

log = logging.getLogger("agent.doors")

PORT = 19999
"""Where doors knock, on the agent's pod address."""
BEAT_SECONDS = 1.0
ANSWER_SECONDS = 3.0
SILENCE_SECONDS = 10.0
LINE_BYTES = 1 << 16
CLIENTS = 100
"""No more than this are believed of one door."""
STRANGERS, STRANGERS_EACH = 128, 8
"""So many may not have shown the token yet, in all and from one address; see `strangers.py`."""


Carry = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Has the connection for datagrams of a pod's door, by the pod's uid."""


class DoorLostError(Exception):
    """A door does not answer, or can't do what it was told; the text is for the developer."""


def tag_of(uid: str) -> str:
    """A pod's uid as a part of Envoy's and of files' names."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


class Door:
    """One that is connected."""

    def __init__(self, uid: str, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.uid = uid
        self.tag = tag_of(uid)
        self.address = address
        """The pod's, as the door has come from it."""
        self.places: dict[int, int] = {}
        """The original's ports to those by which the agent gets to it, past the door."""
        self.caught: dict[int, int] = {}
        """What it catches: the original's port to Envoy's listener."""
        self.datagram_places: frozenset[int] = frozenset()
        """The original's UDP ports for which it has places."""
        self.caught_datagrams: frozenset[int] = frozenset()
        self.problem = ""
        self.back: dict[int, int] = {}
        """The original's ports that the agent can't connect to: a NetworkPolicy is in the way. To the loopback ports at
        which connections are taken that the door then makes from within."""
        self.cut_off: dict[int, str] = {}
        """The original's ports to which there is no way at all, and why."""
        self.no_datagrams = ""
        """Why it takes none; TCP goes on."""
        self._looked: frozenset[int] = frozenset()
        self._reader, self._writer = reader, writer
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def open(self, ports: Collection[int], datagrams: Collection[int] = ()) -> None:
        """Let it make places for these ports, and these of UDP. DoorLostError. What it can't do for datagrams alone is
        in `no_datagrams`: its kernel may have no TPROXY."""
        if ports - self.places.keys():
            answer = await self._ask(open=sorted(ports), udp=sorted(self.datagram_places))
            try:
                places = {int(port): int(place) for port, place in answer["places"].items()}
                if not all(0 < each < 65536 for each in places.values()):
                    raise ValueError("no port")
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
                # Of whoever is in that pod. Envoy would refuse it, and with it what is everybody's.
                self.problem = "what the door says can't be read"
                self.close()
                raise DoorLostError(self.problem) from None
            self.places = places
        if not set(datagrams) - self.datagram_places:
            return
        try:
            await self._ask(open=sorted(self.places), udp=sorted(datagrams))
        except DoorLostError as problem:
            if self._writer.is_closing():
                raise
            self.no_datagrams, self.problem = str(problem), ""
        else:
            self.no_datagrams, self.datagram_places = "", frozenset(datagrams)

    def endpoint(self, port: int) -> tuple[str, int] | None:
        """Where the agent gets to the original's port, past the door's catching; None if there is no such way (yet)."""
        if port in self.cut_off:
            return None
        if port in self.back:
            return "127.0.0.1", self.back[port]
        return (self.address, self.places[port]) if port in self.places else None

    async def reach(self, back: Back, *, again: bool = False) -> None:
        """Find out which ports the agent can connect to, and take the way back for the others. Where the agent can't
        listen for that way, the port is in `cut_off`, and asked for again the next time."""
        ports = frozenset(self.places)
        if again or self.cut_off or ports != self._looked:
            direct = await asyncio.gather(*(reach.reached(self.address, self.places[each]) for each in ports))
            self._looked, self.cut_off = ports, {}
            for port, there in zip(ports, direct, strict=True):
                if there:
                    self.back.pop(port, None)
                elif port not in self.back:
                    log.info("port %d of %s can't be connected to: its door brings connections", port, self.address)
                    try:
                        self.back[port] = await back.listen(self, port)
                    except OSError as problem:
                        self.cut_off[port] = f"the agent can't listen for what the door brings: {problem}"

    def bring(self, port: int, key: str) -> None:
        """Ask it for a connection to one of the original's ports."""
        self._say(back=port, key=key)

    async def catch(self, ports: Mapping[int, int], datagrams: Collection[int] = ()) -> None:
        """Let it catch these ports, and these of UDP, and no others. DoorLostError."""
        if self.caught != ports or self.caught_datagrams != frozenset(datagrams):
            await self._ask(catch={str(port): listener for port, listener in ports.items()}, udp=sorted(datagrams))
            self.caught, self.caught_datagrams = dict(ports), frozenset(datagrams)

    async def count(self, ports: Collection[int]) -> tuple[dict[str, int], Compared | None]:
        """How many connections lead to these ports past the door, by client's address, and what they carry, if it says
        so. DoorLostError."""
        answer = await self._ask(count=sorted(ports))
        try:
            clients = {each and plain(each): int(number) for each, number in answer["clients"].items()}
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError):  # of whoever is in that pod
            raise DoorLostError("what the door says can't be read") from None
        return dict(list(clients.items())[:CLIENTS]), Compared.read(answer.get("compared"))

    def catches(self, ports: Iterable[int], datagrams: Iterable[int] = ()) -> bool:
        """All of these; of UDP it has a place for all, as it catches them only while somebody takes them."""
        return self.caught.keys() >= set(ports) and self.datagram_places >= set(datagrams)

    async def _ask(self, **message: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._say(n=number, **message)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found: dict[str, Any] = await answer
        except TimeoutError:
            self.problem = f"the door does not answer in {ANSWER_SECONDS:g} s"
            self.close()
            raise DoorLostError(self.problem) from None
        finally:
            self._answers.pop(number, None)
        if "error" in found:
            self.problem = str(found["error"])
            raise DoorLostError(self.problem)
        self.problem = ""
        return found

    def _say(self, **message: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def heed(self) -> None:
        """What it says, until it is gone."""
        beating = background(self._beat(), name="door's beat")
        try:
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    line = await self._reader.readline()
                if not line:
                    return
                message = json.loads(line)
                waiter = self._answers.get(message.get("n"))
                if waiter is not None and not waiter.done():
                    waiter.set_result(message)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, TimeoutError) as problem:
            log.info("the door of %s: %s", self.address, problem or "silent")
        finally:
            beating.cancel()
            self.close()
            for waiter in self._answers.values():
                if not waiter.done():
                    waiter.set_result({"error": "the door is gone"})

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._say(beat=True)

    def end(self) -> None:
        """Tell it to end; what goes through it may end in order."""
        self._say(end=True)
        self.close()

    def close(self) -> None:
        """Hear no more of it."""
        self._writer.close()


class Doors:
    """All of them. `expected` gives the addresses of a pod that somebody has asked for; `changed` is called when one
    has come or gone; `carry` has a door's connection for datagrams until that ends."""

    def __init__(
        self, expected: Callable[[str], Collection[str]], changed: Callable[[], None], carry: Carry | None = None
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self.known: dict[str, Door] = {}
        """By the pods' uids."""
        self._expected = expected
        self._changed = changed
        self._carry = carry
        self._carrying: set[str] = set()
        self.back = Back()
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()
        self._strangers = Strangers(total=STRANGERS, each=STRANGERS_EACH, seconds=ANSWER_SECONDS)

    async def listen(self) -> None:
        """Let them come. OSError."""
        async with self._opening:
            if self._server is None:
                await self.back.start()
                self._server = await asyncio.start_server(self._came, None, PORT, limit=LINE_BYTES)

    async def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._heard(reader, writer)
        finally:
            # Whatever has happened. Not `close`, which waits until a peer takes what was written; a stranger may never.
            writer.transport.abort()

    async def _heard(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peername = writer.get_extra_info("peername")
        if peername is None:  # it has gone already
            return
        peer = plain(peername[0])
        try:
            with self._strangers.arrived(peer, writer.transport.abort):
                message = json.loads(await reader.readline())
            uid, token, carries = str(message["door"]), str(message["token"]), message.get("datagrams") is True
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        known = secrets.compare_digest(token.encode(errors="replace"), self.token.encode())
        if not known or (uid in self.known) is not carries or peer not in self._expected(uid):
            log.info("a door from %s is not taken", peer)
            return
        if carries:
            if self._carry is not None and uid not in self._carrying:  # one a door
                self._carrying.add(uid)
                try:
                    await self._carry(uid, reader, writer)
                finally:
                    self._carrying.discard(uid)
            writer.close()
            return
        door = self.known[uid] = Door(uid, peer, reader, writer)
        log.info("a door at %s", peer)
        self._changed()
        try:
            await door.heed()
        finally:
            if self.known.get(uid) is door:
                del self.known[uid]
            self.back.forget(door)
            self._changed()

    def end(self, door: Door) -> None:
        """Let one go: its pod may have another one from now on."""
        if self.known.get(door.uid) is door:
            del self.known[door.uid]
        door.end()

    async def close(self) -> None:
        """Let all go, and listen no more."""
        for each in list(self.known.values()):
            with contextlib.suppress(DoorLostError):
                await each.catch({})
            self.end(each)
        if self._server is not None:
            self._server.close()
            self._server = None
        self.back.close()


def own_address() -> str:
    """The address that this pod is reached by: the one that it has towards the API server. OSError."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        made.connect((host, 443))  # sends nothing
        return str(made.getsockname()[0])

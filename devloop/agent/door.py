"""`python -m devloop.agent.door`: a door, the process of an ephemeral container in a pod whose traffic is intercepted.

Where clients connect to a pod's own address, no Service can lead them elsewhere. So the pod does: a door catches what
comes in for some of its ports (`rules.py`) and hands each connection to the agent's Envoy, which decides as it does
for a Service. What no route takes comes back to this same pod, past the door.

    client ─▶ pod:8080 ─▶ door ─▶ the agent's Envoy ─┬─▶ the developer
                                                     └─▶ pod:P ─▶ (the kernel) ─▶ pod:8080, the original

Datagrams go by the same rules, and through a connection of their own (`caught.py`). What nobody takes is not caught.

It does what the agent says, and nothing without it: no word from the agent, and what comes goes to the original. A
connection that the agent doesn't take is given to the original as well. It connects to nothing but these two, so it is
of no use to anybody as a relay. It ends when the agent says so, or is lost, and its connections are over.

Where a NetworkPolicy keeps the agent from pod:P, the agent asks for a connection, and the door makes it from within:
one to the agent and one to the original, joined (`back.py`).

Configured by the environment of its container:

    DEVLOOP_DOOR_AGENT   the agent's address and port, as 10.244.0.7:19999 or [fd00::7]:19999
    DEVLOOP_DOOR_TOKEN   what the agent knows its doors by
    DEVLOOP_DOOR_POD     the pod's uid
    DEVLOOP_DOOR_TABLE   the name of its nftables table
    DEVLOOP_DOOR_PASS    addresses of clients that are let through: the node's, for its kubelet's probes
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any

from . import diag, rules
from .caught import TRANSPARENT, Caught
from .gateways import gateways
from .loops import new_event_loop
from .request_rate import RequestRate
from .splice import Inward, Onward
from .tasks import background

log = logging.getLogger("door")

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 3.0
"""An agent that says nothing for so long gets no more connections."""
LOST_SECONDS = 30.0
"""After so long it is taken for gone."""
JOIN_SECONDS = 10.0
DIAL_SECONDS = 1.0
SHUT_SECONDS = 3.0
BACK_PORT = 19998
"""Where the agent takes connections to the original that it has asked for."""
LINGER_SECONDS = (10.0, 60.0)
"""Ending: connections may go on for so long, and those that wait for an answer for so long."""
STOP_SECONDS = (0.5, 25.0)
"""The same when the pod itself ends; the original's own end is what most of them wait for."""
NFT_SECONDS = 5.0
FAILURES = 3
"""After so many words to the kernel that it does not take, one after the other, the door ends: it catches nothing."""
_ORIGINAL_DST = 80
"""SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, linux/netfilter_ipv4.h; Python's `socket` has no name for them."""
NO_DATAGRAMS = "UDP takes TPROXY for nftables, nft_tproxy"


class DoorError(Exception):
    """It can't work; the text is for the developer."""


@dataclass(eq=False)
class Place:
    """Where the door listens for one port of the original."""

    port: int
    number: int = 0
    servers: list[asyncio.Server] = field(default_factory=list)


class Door:
    """One door's work. `agent`: where it is; `passed`: see `rules`."""

    def __init__(self, agent: tuple[str, int], token: str, pod: str, table: str, passed: Iterable[str]) -> None:
        self._agent = agent
        self._token, self._pod = token, pod
        self._table = rules.checked(table)
        self._passed = sorted(set(passed))
        self._transparent: bool | None = None
        """Whether the kernel has TPROXY for nftables; None: it has not been asked for it yet."""
        self._places: dict[int, Place] = {}
        self._caught: dict[int, int] = {}
        """Ports of the original to the agent's listeners."""
        self._open: set[Inward] = set()
        self._rates: defaultdict[frozenset[int], RequestRate[bytes]] = defaultdict(RequestRate)
        """By the ports that are asked for."""
        self._datagrams = Caught(self._datagrams_lost)
        self._caught_datagrams: frozenset[int] = frozenset()
        self._saying: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._connects: asyncio.Task[None] | None = None
        self._bringing: set[asyncio.Task[None]] = set()
        self._heard = time.monotonic()
        self._nft = asyncio.Lock()
        self._ended = asyncio.Event()
        self._stopped = False
        self._shut = 0.0
        """Until then (monotonic seconds) no connection to the agent is tried."""

    def stop(self) -> None:
        """The pod is about to end."""
        self._stopped = True
        self._ended.set()

    async def run(self) -> None:
        """Until the agent says that it is over, or is gone. DoorError."""
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                reader, writer = await asyncio.open_connection(*self._agent)
        except (OSError, TimeoutError) as problem:
            raise DoorError(f"the agent at {self._agent[0]}:{self._agent[1]} can't be reached: {problem}") from problem
        self._say(writer, door=self._pod, token=self._token)
        tasks = [
            background(self._heed(reader, writer), name="heed"),
            background(self._live(writer), name="live"),
        ]
        try:
            await self._ended.wait()
            self._caught = {}
            self._caught_datagrams = frozenset()
            with contextlib.suppress(DoorError):
                await self._say_alive()  # at once: what is new goes to the original
            tasks[0].cancel()
            await self._linger(*(STOP_SECONDS if self._stopped else LINGER_SECONDS))
        finally:
            tasks += [self._connects] if self._connects is not None else []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()
            self._datagrams.close()
            with contextlib.suppress(DoorError):
                await self._tell_kernel(rules.gone(self._table))
        log.info("the door is closed")

    async def _linger(self, idle: float, busy: float) -> None:
        """Until connections are over that were handed on: no later than `busy` seconds, those at rest after `idle`."""
        began = time.monotonic()
        while self._open and time.monotonic() < began + busy:
            if time.monotonic() > began + idle and not any(each.busy(1.0) for each in self._open):
                return
            await asyncio.sleep(0.05)

    # --- The agent ------------------------------------------------------------------------------------------------

    def _say(self, writer: asyncio.StreamWriter, **message: Any) -> None:
        if not writer.is_closing():
            writer.write(json.dumps(message).encode() + b"\n")

    async def _heed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What the agent says, one after the other."""
        try:
            while line := await reader.readline():
                self._heard = time.monotonic()
                message = json.loads(line)
                if "end" in message:
                    break
                if "back" in message:
                    self._bring(int(message["back"]), str(message["key"]), writer.get_extra_info("sockname")[0])
                    continue
                if "n" not in message:
                    continue
                try:
                    answer = await self._do(message)
                except (DoorError, ValueError, OSError) as problem:
                    answer = {"error": str(problem)}
                self._say(writer, n=message["n"], **answer)
        except (OSError, ValueError) as problem:
            log.info("the agent: %s", problem)
        finally:
            self._ended.set()

    async def _do(self, message: dict[str, Any]) -> dict[str, Any]:
        if "open" in message:
            for port in message["open"]:
                if int(port) not in self._places:
                    self._places[int(port)] = await self._place(int(port))
            if message.get("udp") and self._transparent is False:
                raise DoorError(NO_DATAGRAMS)
            for port in message.get("udp", ()):
                self._datagrams.place(int(port))
            if self._datagrams.places and not self._datagrams.connected:
                await self._connect_datagrams()
            await self._tell_rules()
            await self._say_alive()
            return {"places": {str(each.port): each.number for each in self._places.values()}}
        if "catch" in message:
            self._caught = {int(port): int(listener) for port, listener in message["catch"].items()}
            if missing := self._caught.keys() - self._places.keys():
                raise DoorError(f"ports {sorted(missing)} were not opened")
            self._caught_datagrams = frozenset(map(int, message.get("udp", ())))
            if unknown := self._caught_datagrams - self._datagrams.places.keys():
                raise DoorError(f"UDP ports {sorted(unknown)} were not opened")
            await self._say_alive()
            names = [*map(str, sorted(self._caught)), *(f"{port}/udp" for port in sorted(self._caught_datagrams))]
            log.info("catching %s", ", ".join(names) or "nothing")
        if "count" in message:
            return self._earlier(frozenset(map(int, message["count"])))
        return {}

    async def _connect_datagrams(self) -> None:
        """Have one connection for them. DoorError if the agent takes none."""
        loop = asyncio.get_running_loop()
        async with self._connecting:  # the agent takes one of a door, and a second one would stand in for the first
            if self._datagrams.connected:
                return
            try:
                async with asyncio.timeout(JOIN_SECONDS / 4):
                    await loop.create_connection(lambda: self._datagrams, *self._agent)
            except (OSError, TimeoutError) as problem:
                raise DoorError(f"the agent takes no datagrams: {problem or 'silent'}") from problem
            self._datagrams.hello({"door": self._pod, "token": self._token, "datagrams": True})

    async def _connect_datagrams_again(self) -> None:
        with contextlib.suppress(DoorError):
            await self._connect_datagrams()
            await self._say_alive()

    def _datagrams_lost(self) -> None:
        """The original answers from now on; `_live` connects again."""
        if not self._ended.is_set():
            self._saying = background(self._say_alive_or_not(), name="datagrams lost")

    async def _say_alive_or_not(self) -> None:
        with contextlib.suppress(DoorError):
            await self._say_alive()

    def _bring(self, port: int, key: str, here: str) -> None:
        """Make a connection to the original for the agent, which can't. `here`: the pod's own address."""
        if port not in self._places:
            log.info("a connection to port %d was asked for, which was not opened", port)
            return
        task = background(self._brought(port, key, here), name="back")
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    async def _brought(self, port: int, key: str, here: str) -> None:
        loop = asyncio.get_running_loop()

        async def dial(onward: Onward) -> None:
            made.transport.write(key.encode())
            async with asyncio.timeout(DIAL_SECONDS):
                try:
                    await loop.create_connection(lambda: onward, here, port)
                except ConnectionRefusedError:  # it may listen on the other family alone
                    await loop.create_connection(lambda: onward, "127.0.0.1" if ":" in here else "::1", port)

        made = Inward(dial, self._open.discard)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await loop.create_connection(lambda: made, self._agent[0], BACK_PORT)
        except (OSError, TimeoutError) as problem:
            log.info("the agent takes no connection back: %s", problem or "silent")
            return
        self._open.add(made)

    def _earlier(self, ports: frozenset[int]) -> dict[str, Any]:
        """How many connections lead to these ports past this door, by client: those from before; and, since somebody
        has asked before, what they carry. OSError."""
        passed = {*self._passed, self._agent[0]}
        with contextlib.closing(diag.opened()) as sock:
            # What was taken over leads to the original until its streams have ended.
            found = diag.connections(sock, ports, taken_over=True)
        found = [each for each in found if each.client not in passed and each.client != each.address]
        found = [each for each in found if not ip_address(each.client).is_loopback]
        carried = {each.identity: each.packets for each in found if each.packets is not None}
        compared = self._rates[ports].look(time.monotonic(), carried, len(found))
        return {
            "clients": diag.fitting(Counter(each.client for each in found)),
            "compared": compared and compared.document(),
        }

    async def _live(self, writer: asyncio.StreamWriter) -> None:
        """Tell the kernel, each second, that the door is there; and the agent."""
        failures = 0
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            silent = time.monotonic() - self._heard
            if silent > LOST_SECONDS:
                log.info("the agent has said nothing for %.0f s", silent)
                self._ended.set()
            # Beside this: an agent that is silent there must not keep the kernel waiting for the next word.
            waits = self._connects is not None and not self._connects.done()
            if self._datagrams.places and not self._datagrams.connected and not waits:
                self._connects = background(self._connect_datagrams_again(), name="datagrams")
            self._datagrams.expire()
            try:
                await self._say_alive_or_anew()
            except DoorError as problem:
                failures += 1
                log.warning("%s", problem)
                if failures == FAILURES:
                    self._ended.set()
            else:
                failures = 0
                self._say(writer, beat=True)

    async def _say_alive_or_anew(self) -> None:
        """As `_say_alive`; where somebody has flushed the rules, they are made anew. DoorError."""
        try:
            await self._say_alive()
        except DoorError:
            await self._tell_rules()
            await self._say_alive()

    # --- The kernel -----------------------------------------------------------------------------------------------

    async def _tell_rules(self) -> None:
        places = {each.port: each.number for each in self._places.values()}
        udp = self._datagrams.places
        transparent = self._transparent is not False
        try:
            await self._tell_kernel(
                rules.rules(self._table, places, self._passed, transparent=transparent, datagrams=udp)
            )
        except DoorError as problem:
            if self._transparent is not None:
                raise
            log.info("this kernel has no TPROXY for nftables, and takes `redirect`: %s", problem)
            await self._tell_kernel(rules.rules(self._table, places, self._passed, transparent=False))
            self._transparent = False
            if udp:
                self._datagrams.close()  # what comes to other ports goes on
                raise DoorError(f"{problem} ({NO_DATAGRAMS})") from problem
        else:
            if places or udp:
                self._transparent = transparent

    async def _say_alive(self) -> None:
        """The ports that are caught now, and those of the door's that lead to the original."""
        if self._places or self._datagrams.places:
            heard = time.monotonic() - self._heard < SILENCE_SECONDS
            caught = self._caught if heard else {}
            datagrams = self._caught_datagrams if heard and self._datagrams.connected else ()
            numbers = [each.number for each in self._places.values()]
            await self._tell_kernel(rules.alive(self._table, caught, numbers, datagrams))

    async def _tell_kernel(self, text: str) -> None:
        async with self._nft:
            process = await asyncio.create_subprocess_exec(
                *("nft", "-f", "-"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(NFT_SECONDS):
                    _, said = await process.communicate(text.encode())
            except TimeoutError:
                process.kill()
                raise DoorError(f"nft has not answered in {NFT_SECONDS:g} s") from None
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or ["no reason"]
            raise DoorError(f"nftables in the pod's network: {lines[0][:200]}")

    # --- Connections ----------------------------------------------------------------------------------------------

    async def _place(self, port: int) -> Place:
        """Listen for one port's connections, on a number that is free for IPv4 and IPv6."""
        for _ in range(20):
            place = Place(port)
            four = _listening(socket.AF_INET, 0)
            place.number = four.getsockname()[1]
            sockets = [four]
            try:
                if socket.has_ipv6:
                    sockets.append(_listening(socket.AF_INET6, place.number))
            except OSError as problem:
                if problem.errno == errno.EADDRINUSE:
                    four.close()
                    continue
                # A pod without IPv6.
            loop = asyncio.get_running_loop()
            for each in sockets:
                place.servers.append(await loop.create_server(partial(self._came, place), sock=each))
            return place
        raise DoorError("no port is free for a door")

    def _came(self, place: Place) -> Inward:
        """A connection that was caught."""

        async def dial(onward: Onward) -> None:
            loop = asyncio.get_running_loop()
            listener = self._caught.get(place.port)
            if _asked_port(made.transport) == place.number:
                listener = None  # what the agent sends to the original, and the rules are gone: it would come again
            if listener is not None and time.monotonic() >= self._shut:
                try:
                    async with asyncio.timeout(DIAL_SECONDS):
                        await loop.create_connection(lambda: onward, self._agent[0], listener)
                    return
                except TimeoutError:  # a NetworkPolicy's doing: not every client is to wait for that
                    self._shut = time.monotonic() + SHUT_SECONDS
                except OSError:
                    pass
            # Where the client wanted to go: from within the pod, the rules let it pass.
            here = made.transport.get_extra_info("sockname")[0]
            async with asyncio.timeout(DIAL_SECONDS):
                await loop.create_connection(lambda: onward, here, place.port)

        made = Inward(dial, self._open.discard)
        self._open.add(made)
        return made


def _asked_port(transport: asyncio.Transport) -> int:
    """Which port the client of a connection has asked for; a transparent socket's own is that."""
    connected = transport.get_extra_info("socket")
    level = socket.IPPROTO_IPV6 if connected.family == socket.AF_INET6 else socket.SOL_IP
    with contextlib.suppress(OSError):  # ENOENT: nothing was translated
        # A sockaddr_in or sockaddr_in6, whose port is in the same place; of `redirect`.
        return int.from_bytes(connected.getsockopt(level, _ORIGINAL_DST, 28)[2:4], "big")
    return int(transport.get_extra_info("sockname")[1])


def _listening(family: socket.AddressFamily, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(*TRANSPARENT[family], 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        made.listen(4096)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def address(text: str) -> tuple[str, int]:
    """An address and a port, as a URL has them. DoorError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise DoorError(f"DEVLOOP_DOOR_AGENT is {text!r}, and it is an address and a port")
    return host.strip("[]"), int(port)


async def work() -> None:
    """A door as the environment has it, until it is over."""
    given = {key: os.environ.get(f"DEVLOOP_DOOR_{key}", "") for key in ("AGENT", "TOKEN", "POD", "TABLE", "PASS")}
    passed = [each for each in given["PASS"].split(",") if each] + gateways()
    door = Door(address(given["AGENT"]), given["TOKEN"], given["POD"], given["TABLE"], passed)
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, door.stop)
    await door.run()


def main() -> int:
    """The exit code: 0 when it is over, 1 if it can't work."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(work())
    except (DoorError, ValueError) as problem:
        print(f"devloop door: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

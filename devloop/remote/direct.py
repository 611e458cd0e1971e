"""A second SSH connection to the agent, straight to its pod, where this machine reaches the pod's address.

It does in a cluster whose pods have addresses of the network around it, from within that network or by a VPN into it.
API server, kubelet and containerd are then not on the way of a single byte. Whether it can be had is found out by
trying, beside what goes on: the first connection, the *base*, came by a port-forward and is good for everything. What
the agent asks of whoever comes directly is in `devloop/agent/direct.py`.

Importing this imports asyncssh.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from asyncio.staggered import staggered_race
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import cast

import asyncssh

from devloop.agent.addresses import host_port
from devloop.agent.direct import COMMAND
from devloop.agent.tasks import background
from devloop.dial import connect
from devloop.errors import RemoteError
from devloop.remote.said import json_of, said

from .sshcarrier import SshCarrier

log = logging.getLogger(__name__)

TRY_SECONDS = 3.0
"""One that takes longer than this to be there is no shorter way."""
AGAIN_SECONDS = (10.0, 300.0)
"""After so long it is tried again, the first time; twice as long after each one in vain, up to the second."""
STEADY_SECONDS = 60.0
"""One that lasted this long was no mistake: a way that takes small packets alone breaks sooner."""
STAGGER_SECONDS = 0.25
"""RFC 8305: so long after one address the next one is tried."""

Login = Callable[[socket.socket], Awaitable[asyncssh.SSHClientConnection]]
"""Logs in by a connected socket, in place of the base's port-forward. Raises OSError and RemoteError."""


class AbsentError(Exception):
    """This agent has no direct connections to give."""


class Direct:
    """The direct connection beside one base, made anew while there is a base.

    `changed` is called when it has come or gone.
    """

    def __init__(
        self,
        base: SshCarrier,
        addresses: Sequence[tuple[str, int]],
        login: Login,
        changed: Callable[[], None],
    ) -> None:
        """`addresses`: where the agent may be, as (host, port); port 0 stands for the one that it says."""
        self._base = base
        self._addresses = addresses
        self._login = login
        self._changed = changed
        self._again = asyncio.Event()
        self._answered = asyncio.Event()
        self._tried = asyncio.Event()
        self._over = False
        self.carrier: SshCarrier | None = None
        """The connection, while there is one."""
        self.address = ""
        """Where it leads, for people; empty while there is none."""
        self._task = background(self._live(), name="direct connection")

    async def tried(self, seconds: float) -> None:
        """Come back when it is known whether there is one; after `seconds`, if nobody has answered there until then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._answered.wait()
            await self._tried.wait()

    def again(self) -> None:
        """Do not wait for the next attempt: the network has changed."""
        self._again.set()

    async def _live(self) -> None:
        delay = AGAIN_SECONDS[0]
        while True:
            self._again.clear()
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    carrier, address = await self._connect()
            except AbsentError as problem:
                log.info("no direct connection: %s", problem)
                return
            except (asyncssh.Error, RemoteError, OSError, TimeoutError) as problem:
                log.info("no direct connection: %s", str(problem) or "no answer")
            else:
                began = time.monotonic()
                await self._use(carrier, address)
                if time.monotonic() - began > STEADY_SECONDS:
                    delay = AGAIN_SECONDS[0]
            finally:
                self._answered.set()
                self._tried.set()
            try:
                async with asyncio.timeout(delay):
                    await self._again.wait()
            except TimeoutError:
                delay = min(delay * 2, AGAIN_SECONDS[1])
            else:
                delay = AGAIN_SECONDS[0]

    async def _use(self, carrier: SshCarrier, address: str) -> None:
        """Until it has ended."""
        if self._over:  # asyncio's wait_for, which asyncssh connects with, loses a cancellation that comes just then
            carrier.abort("the link is over")
            raise asyncio.CancelledError
        self.carrier, self.address = carrier, address
        self._tried.set()
        self._changed()
        try:
            log.info("the direct connection to %s has ended: %s", address, await carrier.lost())
        finally:
            self.carrier, self.address = None, ""
        if not self._base.over:  # else all is over, which others say
            self._changed()

    async def _connect(self) -> tuple[SshCarrier, str]:
        """To the first address at which the agent is. Raises what `_live` expects.

        Somebody else may answer at one of them: a gateway that accepts every connection, a pod of another cluster.
        """
        left = list(self._addresses)
        while True:
            sock, address, tried = await self._knock(left)
            try:
                connection = await self._login(sock)
            except BaseException as problem:
                sock.close()
                left.remove(tried)
                if not left or not isinstance(problem, asyncssh.Error | RemoteError | OSError):
                    raise
                log.info("not the agent at %s: %s", address, problem)
            else:
                return SshCarrier(connection, "agent", self._base.where, snug=True), address

    async def _knock(self, addresses: Sequence[tuple[str, int]]) -> tuple[socket.socket, str, tuple[str, int]]:
        """Ask for a ticket, go to one of these addresses and show it; the socket, where it leads, and which it was."""
        try:
            told = json_of(await said(self._base.connection, COMMAND))
            port, ticket = int(told["port"]), bytes.fromhex(told.get("ticket", ""))
        except asyncssh.ChannelOpenError as problem:  # the base has ended
            raise AbsentError(str(problem) or "the agent knows of none") from problem
        except (ArithmeticError, LookupError, TypeError, ValueError) as problem:
            raise AbsentError(f"the agent's answer can't be read: {problem!r}") from problem
        if not port:
            raise AbsentError("the agent has none to give")
        sock, address, index = await reach([(host, given or port) for host, given in addresses])
        self._answered.set()
        try:
            sock.send(ticket)  # into the empty buffer of a new socket
        except BaseException:
            sock.close()
            raise
        return sock, address, addresses[index]

    def abort(self, reason: str) -> None:
        """End it at once, for good."""
        self._over = True
        self._task.cancel()
        if self.carrier is not None:
            self.carrier.abort(reason)

    async def close(self) -> None:
        """End it in order, for good."""
        carrier = self.carrier
        self._over = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if carrier is not None:
            await carrier.close()


async def reach(addresses: Sequence[tuple[str, int]]) -> tuple[socket.socket, str, int]:
    """A socket that is connected to the first of these that answers, where it leads, and its index. Raises OSError.

    Hosts may be names.
    """
    loop = asyncio.get_running_loop()
    found: list[tuple[str, int]] = []
    given: list[int] = []
    for index, (host, port) in enumerate(addresses):
        for *_, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            found.append((str(address[0]), int(address[1])))
            given.append(index)
    made: list[socket.socket] = []

    async def one(host: str, port: int) -> str:
        made.append(await connect(host, port))
        return host_port(host, port)

    try:
        address, won, problems = await staggered_race([partial(one, *each) for each in found], STAGGER_SECONDS)
        if address is None or won is None:
            raise next((each for each in problems if each is not None), OSError("it has no address"))
    except BaseException:
        for sock in made:
            sock.close()
        raise
    for sock in made[1:]:  # two may have been connected in the same turn
        sock.close()
    return made[0], cast(str, address), given[won]

"""The link with nothing installed: plain port-forwards to the pods behind a Service.

For people who may not create pods. It reaches what has a pod in a namespace that this user may look into: Services
by name and by address, pods by name and by address, headless Services. It can't reach the cluster's resolver, so it
answers DNS questions itself, from the API's objects, as CoreDNS would (kubernetes/dns specification 1.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from devloop.agent.tasks import background
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.errors import RemoteError
from devloop.remote.link import (
    CarrierLostError,
    Kind,
    NameLookupError,
    NoDatagramsError,
    OpenError,
    PermanentError,
    Refusal,
    Resolver,
)

from .api import Api, ApiError, ApiUnreachableError
from .names import ClusterNames, Target
from .spdy import Connection, StreamResetError, connect_pod

P = TypeVar("P", bound=asyncio.Protocol)
WEBSOCKETS = 32
"""To one pod. Up to so many connections each have one of their own, and none holds up another; a websocket that has
become free serves the next. Beyond that they share."""
SPARE_SECONDS = 30.0
"""How long a websocket that nobody uses is kept for the next connection."""
CHECK_SECONDS = 2.0
DEAD_SECONDS = 3.0


class PortForwardCarrier:
    """Websockets to pods, opened as they are asked for, and the names that lead to them."""

    kind: Kind = "portforward"
    direct = ""

    def __init__(self, api: Api, notes: tuple[str, ...] = ()) -> None:
        self.api = api
        self.notes = notes
        self.names = ClusterNames(api)
        self._sockets: dict[tuple[str, str], list[Connection]] = {}
        self._dialing: dict[tuple[str, str], set[asyncio.Task[Connection]]] = {}
        self._look = asyncio.Event()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watching: asyncio.Task[None] | None = None
        self._turn = 0

    async def begin(self) -> None:
        """Look once whether the API answers and pods may be seen. RemoteError if not."""
        try:
            await self.names.refresh()
        except ApiError as problem:
            if problem.status == HTTPStatus.FORBIDDEN:
                hint = problem.hint or "`devloop doctor` names the Roles that are missing."
                raise PermanentError(problem.what, where=self.api.where, hint=hint) from problem
            raise
        self._watching = background(self._watch(), name="port-forwards")

    async def _watch(self) -> None:
        """Notice that the API server does not answer any more."""
        while True:
            # Every so often, and at once when a websocket has ended.
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._look.wait()
            began = time.monotonic()
            try:
                async with asyncio.timeout(DEAD_SECONDS):
                    await self.api.get("/version")
            except (RemoteError, OSError, TimeoutError) as problem:
                # What comes by a websocket comes from the API server too, and may be what its answer waits behind.
                if not isinstance(problem, TimeoutError) or all(each.heard < began for each in self._all()):
                    self.abort(str(problem) or "the API server does not answer")
                    return
            async with asyncio.TaskGroup() as group:
                for connection in self._all():
                    if not connection.load:
                        if began - connection.used > SPARE_SECONDS:
                            connection.close()
                    elif not connection.stalled:
                        group.create_task(self._ping(connection))

    def _all(self) -> list[Connection]:
        return [each for connections in self._sockets.values() for each in connections]

    async def datagrams(self, client: DatagramClient, address: str, port: int) -> DatagramFlow:
        """Kubernetes' port-forwards are for TCP alone."""
        what = "the link is plain port-forwards, which carry TCP alone"
        raise NoDatagramsError(what, where=self.api.where, hint="`devloop doctor` says why there is no agent.")

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
        """Open a connection to a pod behind `host`."""
        try:
            targets = await self.names.targets(host, port)
        except ApiUnreachableError as problem:
            self.abort(str(problem))
            raise CarrierLostError(str(problem)) from problem
        except ApiError as problem:
            raise OpenError(Refusal.PROHIBITED, host, port, problem.what, hint=problem.hint) from problem
        if not targets:
            raise OpenError(Refusal.REFUSED, host, port, "no ready pod stands behind it")
        self._turn += 1
        target = targets[self._turn % len(targets)]
        for attempt in (1, 2):
            connection = await self._socket(target, host, port)
            try:
                return await connection.open(factory, target.port)
            except StreamResetError as problem:
                # A websocket that ended just now, with nothing sent on this stream yet.
                if attempt == 2 or self._ended.done():
                    raise CarrierLostError(str(problem)) from problem
        raise AssertionError

    async def _socket(self, target: Target, host: str, port: int) -> Connection:
        """A websocket to this pod: a free one, a new one, or the one with the fewest connections."""
        key = (target.namespace, target.pod)
        there = [each for each in self._sockets.get(key, ()) if each.usable]
        dialing = self._dialing.setdefault(key, set())
        if free := next((each for each in there if not each.load), None):
            return free
        if len(there) + len(dialing) >= WEBSOCKETS:
            if there:
                return min(there, key=lambda each: each.load)
            await asyncio.wait(dialing, return_when=asyncio.FIRST_COMPLETED)
            return await self._socket(target, host, port)
        task = asyncio.create_task(self._dial(key), name=f"port-forward {target.pod}")
        dialing.add(task)
        task.add_done_callback(dialing.discard)
        try:
            return await asyncio.shield(task)
        except ApiError as problem:
            self.names.forget()
            refusal = Refusal.UNREACHABLE
            if problem.status in (HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED):
                refusal = Refusal.PROHIBITED
            raise OpenError(refusal, host, port, problem.what, hint=problem.hint) from problem
        except ApiUnreachableError as problem:
            self.abort(str(problem))
            raise CarrierLostError(str(problem)) from problem

    async def _dial(self, key: tuple[str, str]) -> Connection:
        namespace, pod = key
        connection = await connect_pod(
            self.api,
            pod,
            namespace,
            half_close=await self.names.half_close(namespace, pod),
            ended=lambda ended, _: self._drop(key, ended),
        )
        self._sockets.setdefault(key, []).append(connection)
        return connection

    def _drop(self, key: tuple[str, str], connection: Connection) -> None:
        # The pod may have gone: what stands behind the names is looked up anew.
        self.names.forget()
        found = self._sockets.get(key, [])
        if connection in found:
            found.remove(connection)
        if not found:
            self._sockets.pop(key, None)
        self._look.set()

    async def resolver(self) -> Resolver:
        """What a pod's resolv.conf says by default (`dnsPolicy: ClusterFirst`), with no nameserver to reach."""
        domain = self.names.domain
        search = (f"{self.api.namespace}.svc.{domain}", f"svc.{domain}", domain)
        return Resolver((), search, 5, ("ndots:5",))

    async def query(self, message: bytes) -> bytes:
        """Answer from the API's objects."""
        try:
            return await self.names.answer(message)
        except RemoteError as problem:
            raise NameLookupError(problem.what, where=self.api.where) from problem

    async def check(self) -> None:
        """The API server answers. Whether each kubelet does that a websocket leads to is found out soon after."""
        await self.api.get("/version")
        self._look.set()

    async def _ping(self, connection: Connection) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(DEAD_SECONDS):
                await connection.check()
        except (StreamResetError, TimeoutError):
            # What comes is a sign of life. Where somebody does not read, nothing comes, and so no answer either.
            if connection.heard < began and not connection.stalled:
                # One node, not the cluster: its connections end, the others go on.
                connection.abort("the node does not answer")

    async def lost(self) -> str:
        """Wait for the end."""
        return await asyncio.shield(self._ended)

    def abort(self, reason: str) -> None:
        """End every websocket."""
        if not self._ended.done():
            self._ended.set_result(reason)
        for connection in self._all():
            connection.abort(reason)
        if self._watching is not None and self._watching is not asyncio.current_task():
            self._watching.cancel()

    async def close(self) -> None:
        """End them in order."""
        tasks: list[asyncio.Task[Any]] = [each for dialing in self._dialing.values() for each in dialing]
        if self._watching is not None:
            tasks.append(self._watching)
        for connection in self._all():
            connection.close()
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, RemoteError):
                await task
        if not self._ended.done():
            self._ended.set_result("closed")

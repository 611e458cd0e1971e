"""The engine's side of the agent's desk (`devloop/agent/desk.py`), over one SSH connection. Good until it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from devloop.agent.certificates import Termination
from devloop.agent.hello import Hello
from devloop.agent.inbound import COMMAND as INBOUND
from devloop.agent.paths import COMMAND, PROTOCOL, listen_path, protocol_of
from devloop.agent.records import Request, read
from devloop.agent.spec import Spec
from devloop.agent.tasks import background
from devloop.errors import DevloopError, RemoteError
from devloop.remote.versions import unequal

from .inbound import WINDOW_BYTES, Inbound
from .relay import Far, Near
from .seam import AttachError, LocalEnd

if TYPE_CHECKING:
    from devloop.remote.sshcarrier import SshCarrier

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
AWAY_CHARACTERS = 300
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 60.0
"""The same where it is looked what pods say: a silent one takes the agent 10 s, and it looks at some at a time."""
LINE_BYTES = 16 << 20
"""The longest message of the agent's: a batch of requests is the longest of an honest one."""
Away = Callable[[], None]
Heard = Callable[[list[Request], Mapping[str, Mapping[str, int]], Mapping[str, str]], None]


class SessionLostError(RemoteError):
    """The connection to the agent ended while something was asked of it."""


def _differs(theirs: int, where: str) -> AttachError:
    what, hint = unequal(theirs)
    return AttachError(f"{what}, so nothing is attached", where=where, hint=hint)


@contextlib.contextmanager
def understood(where: str) -> Iterator[None]:
    """For reading an answer of the agent's: what can't be read is an AttachError, whoever speaks in its place."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as problem:
        raise AttachError("the agent's answer can't be read", where=where) from problem


class Session:
    """A connection to the agent's desk. Importing this imports asyncssh."""

    def __init__(self, carrier: SshCarrier, heard: Heard, away: Away = lambda: None) -> None:
        """`away` is called when `self.away` has changed."""
        self.carrier = carrier
        self.away = ""
        """Envoy at the agent is away, and why: nobody's requests come."""
        self._heard = heard
        self._is_away = away
        self._channel: Any = None
        self._rest = ""
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening: dict[str, Any] = {}
        self._targets: dict[str, tuple[Spec, LocalEnd, int, Callable[[], None]]] = {}
        """By path, where connections go that come now: an attachment that comes again may have another local port."""
        self._relays: dict[str, weakref.WeakSet[Far]] = {}
        self._inbound: Inbound | None = None
        self._beating: asyncio.Task[None] | None = None
        self._over = False
        self.leaving = False
        """The agent is about to end, and leads everything back to where it was."""

    async def open(self) -> None:
        """Begin. AttachError if this agent speaks another version; RemoteError if it has no desk; SessionLostError."""
        import asyncssh

        # Two that differ would take each other's first bytes for something else, and lose connections in silence.
        banner = str(self.carrier.connection.get_extra_info("server_version", ""))
        if (theirs := protocol_of(banner)) != PROTOCOL:
            raise _differs(theirs, self.carrier.where)
        try:
            self._channel, _ = await self.carrier.connection.create_session(
                lambda: cast(Any, _Desk(self)), COMMAND, encoding="utf-8"
            )
        except asyncssh.ChannelOpenError as problem:
            if self.carrier.connection.is_closed():
                raise SessionLostError(str(problem)) from problem
            hint = "Its image has no Envoy: `devloop doctor` names the image."
            raise RemoteError("the agent attaches nothing", where=self.carrier.where, hint=hint) from problem
        except (asyncssh.Error, OSError) as problem:
            raise SessionLostError(str(problem)) from problem
        self._beating = background(self._beat(), name="beat")

    async def _beat(self) -> None:
        while True:
            self._send({"do": "beat"})
            await asyncio.sleep(BEAT_SECONDS)

    def _send(self, message: dict[str, Any]) -> None:
        if not self._over:
            with contextlib.suppress(OSError):
                self._channel.write(json.dumps(message) + "\n")

    async def ask(self, seconds: float | None = None, /, **message: Any) -> dict[str, Any]:
        """Ask the agent. AttachError is its refusal; RemoteError, that it can't now. `seconds`: until when it has to
        answer."""
        seconds = ANSWER_SECONDS if seconds is None else seconds
        if self._over:
            raise SessionLostError("the connection to the agent is lost")
        self._number += 1
        number = self._number
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._send({"n": number, **message})
        try:
            async with asyncio.timeout(seconds):
                found: dict[str, Any] = await answer
        except TimeoutError:
            raise SessionLostError(f"the agent has not answered in {seconds:g} s") from None
        finally:
            self._answers.pop(number, None)
        if found.get("again"):
            raise RemoteError(str(found.get("error", "it can't now")), where=self.carrier.where)
        if "error" in found:
            raise AttachError(str(found["error"]), where=self.carrier.where)
        return found

    async def attach(
        self,
        spec: Spec,
        local: LocalEnd,
        served: Callable[[], None],
        *,
        probe: bool = False,
        tls: Mapping[int, Termination | None] | None = None,
    ) -> tuple[dict[int, int], list[str]]:
        """Let the agent have an attachment; the listeners of its Service, by port number. With `probe`, also the
        original pods that the agent can't connect to. `tls`: the ports that speak it, and with what it is ended.
        """
        for port, inner in spec.ports.items():
            await self._listen(listen_path(spec.id, port), spec, local, inner, served)
        for port, inner in spec.datagrams.items():
            (await self._datagrams()).serve(spec.id, port, local, inner, served)
        seconds = LOOK_SECONDS if probe else None
        answer = await self.ask(seconds, do="attach", spec=spec.document(), probe=probe, tls=_documents(tls or {}))
        with understood(self.carrier.where):
            listeners = {int(port): int(number) for port, number in answer.get("listeners", {}).items()}
            return listeners, list(map(str, answer.get("unreached", ())))

    async def _datagrams(self) -> Inbound:
        """The session for datagrams that doors have caught. AttachError if the agent has none; SessionLostError."""
        import asyncssh

        if self._inbound is None or self._inbound.over:
            try:
                _, session = await self.carrier.connection.create_session(
                    lambda: cast(Any, Inbound()), INBOUND, encoding=None, window=WINDOW_BYTES
                )
            except asyncssh.ChannelOpenError as problem:
                if self.carrier.connection.is_closed():
                    raise SessionLostError(str(problem)) from problem
                hint = "`devloop agent uninstall` when nobody else uses it, and the next `up` makes it anew. "
                hint += "An administrator's: `devloop agent manifest`, applied again."
                what = "this agent takes no UDP, as it is older than this devloop"
                raise AttachError(what, where=self.carrier.where, hint=hint) from problem
            except (asyncssh.Error, OSError) as problem:
                raise SessionLostError(str(problem)) from problem
            self._inbound = cast(Inbound, session)
        return self._inbound

    async def _listen(self, path: str, spec: Spec, local: LocalEnd, port: int, served: Callable[[], None]) -> None:
        import asyncssh

        from devloop.remote.sshcarrier import PACKET_BYTES, Channel
        from devloop.remote.sshcarrier import WINDOW_BYTES as CHANNEL_BYTES

        self._targets[path] = (spec, local, port, served)
        if path in self._listening:
            return

        async def opened() -> Any:
            if path not in self._targets:
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "it is not attached any more")
            spec, local, port, served = self._targets[path]

            async def connect(factory: Callable[[], Near]) -> tuple[asyncio.Transport, Near]:
                async with asyncio.timeout(spec.hold):
                    return await local.connect(factory, port)

            far = Far(connect, served)
            self._relays.setdefault(spec.id, weakref.WeakSet()).add(far)
            try:
                await far.join()
            except (OSError, TimeoutError, DevloopError) as problem:
                # Not `str(problem)`: what a local service's address or a plugin's error says stays here.
                reason = f"the local service is not there ({type(problem).__name__})"
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, reason) from problem
            return Channel(self.carrier, far, spec.service, port)

        try:
            self._listening[path] = await self.carrier.connection.create_unix_server(
                opened, path, window=CHANNEL_BYTES, max_pktsize=PACKET_BYTES
            )
        except asyncssh.ChannelListenError as problem:
            raise AttachError("the agent hands no connections over", where=self.carrier.where) from problem
        except (asyncssh.Error, OSError) as problem:
            raise SessionLostError(str(problem)) from problem

    async def reach(self, spec: Spec) -> list[str]:
        """The original pods that the agent can't connect to now. Where doors are, it takes another way if it must."""
        try:
            answer = await self.ask(LOOK_SECONDS, do="reach", id=spec.id)
            with understood(self.carrier.where):
                return list(map(str, answer.get("unreached", ())))
        except SessionLostError:
            raise
        except AttachError:
            return []  # an agent from before, which does not know this

    async def hello(self, spec: Spec, ports: Mapping[int, Iterable[tuple[str, int]]], server: str) -> dict[int, Hello]:
        """What the original says of itself in TLS. `ports`: where each is reached, if that is known."""
        where = {str(port): [list(each) for each in known] for port, known in ports.items()}
        answer = await self.ask(LOOK_SECONDS, do="hello", service=spec.service, ports=where, server=server)
        with understood(self.carrier.where):
            return {int(port): Hello.read(each) for port, each in answer["ports"].items()}

    async def renew(self, spec: Spec, tls: Mapping[int, Termination]) -> None:
        """A certificate was rotated."""
        await self.ask(do="renew", id=spec.id, tls=_documents(tls))

    async def led(self, spec: Spec) -> None:
        """The Service names it among its holders: when this returns, its traffic comes here."""
        await self.ask(do="led", id=spec.id)

    async def barred(self, spec: Spec) -> None:
        """Its Service was led back because somebody would wait in vain at the agent."""
        await self.ask(do="barred", id=spec.id)

    async def detach(self, spec: Spec) -> None:
        """The original has its traffic when this returns."""
        await self.ask(do="detach", id=spec.id)

    async def forget(self, spec: Spec) -> None:
        """Take no more connections for it."""
        for port in spec.ports:
            self._targets.pop(listen_path(spec.id, port), None)
            listener = self._listening.pop(listen_path(spec.id, port), None)
            if listener is not None:
                listener.close()
        if self._inbound is not None:
            self._inbound.forget(spec.id)

    async def drained(self, spec: Spec, seconds: float) -> None:
        """Until the local service has answered what it was asked, but no longer than that."""
        until = time.monotonic() + seconds
        relays = self._relays.get(spec.id, ())
        while any(each.busy for each in relays) and time.monotonic() < until:  # noqa: ASYNC110 (many, for a moment)
            await asyncio.sleep(0.02)

    async def tell(self, spec: Spec, up: bool, deaf: Iterable[int] = (), deaf_datagrams: Iterable[int] = ()) -> None:
        """The local service runs, or does not; and these ports of its Service are answered by nothing of it."""
        more = {"deaf_udp": list(deaf_datagrams)} if spec.datagrams else {}
        await self.ask(do="local", id=spec.id, up=up, deaf=list(deaf), **more)

    def received(self, text: str) -> None:
        """What the agent says."""
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > LINE_BYTES and self._channel is not None:
            self._rest = ""
            self._channel.close()
        for line in lines:
            try:
                self._message(json.loads(line))
            except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
                log.warning("the agent says what can't be read")

    def _message(self, message: Any) -> None:
        if "answer" in message:
            waiter = self._answers.get(message["answer"])
            if waiter is not None and not waiter.done():
                waiter.set_result(message)
        elif "leaving" in message:
            self.leaving = True
        elif "away" in message:
            self.away = str(message["away"])[:AWAY_CHARACTERS]
            self._is_away()
        elif "requests" in message:
            requests = [each for text in message["requests"] if (each := read(text))]
            counts = {
                service: {who: int(number) for who, number in by.items()} for service, by in message["counts"].items()
            }
            holders = {str(each): str(user) for each, user in message.get("holders", {}).items()}
            self._heard(requests, counts, holders)

    def ended(self) -> None:
        """The session is over."""
        self._over = True
        if self._beating is not None:
            self._beating.cancel()
        for waiter in self._answers.values():
            if not waiter.done():
                waiter.set_exception(SessionLostError("the connection to the agent is lost"))

    @property
    def lost(self) -> bool:
        """It has ended."""
        return self._over

    async def close(self) -> None:
        """End it; the agent lets the original answer what this session still had."""
        if self._inbound is not None:
            self._inbound.close()
        if not self._over and self._channel is not None:
            self._channel.close()
        self.ended()


def _documents(tls: Mapping[int, Termination | None] | Mapping[int, Termination]) -> dict[str, Any]:
    return {str(port): each.document() if each is not None else None for port, each in tls.items()}


class _Desk:
    """asyncssh's side of it: an SSHClientSession."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def connection_made(self, chan: Any) -> None:
        pass

    def session_started(self) -> None:
        pass

    def data_received(self, data: str, datatype: int | None = None) -> None:
        self._session.received(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

    def xon_xoff_requested(self, client_can_do: bool) -> None:
        pass

    def exit_status_received(self, status: int) -> None:
        pass

    def exit_signal_received(self, *_: Any) -> None:
        pass

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.ended()

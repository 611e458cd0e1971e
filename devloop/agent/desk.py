"""Where a developer's engine and the agent talk: an SSH session with the command `attachments`, a JSON object a line.

From the engine: `{"do": "attach", "n": 1, "spec": {…}, "tls": {…}}` (certificates: `certificates.py`),
`{"do": "detach", "n": 2, "id": …}`, `{"do": "led", "n": 3, "id": …}`, when it has led the Service to the agent,
`{"do": "local", "n": 3, "id": …, "up": false}`,
`{"do": "hello", "n": 5, "service": …, "ports": {…}, "server": …}`, `{"do": "renew", "n": 6, "id": …, "tls": {…}}`,
`{"do": "doors", "n": 4, "id": …, "pods": […]}`, `{"do": "reach", "n": 7, "id": …}`,
`{"do": "earlier", "n": 8, "id": …}`, `{"do": "barred", "n": 9, "id": …}`, when it has led the Service back as somebody
would wait in vain here, `{"do": "beat"}`.
From the agent: `{"answer": 1, "listeners": {…}}`, `{"answer": 4, "agent": …, "token": …, "pods": {…}}` or
`{"answer": 1, "error": "…", "again": false}`, where `again` says that it is a moment's trouble;
`{"requests": ["…", …], "counts": {"api": {"original": 12}}, "holders": {…}}`, ten times a second at most;
`{"away": "…"}` when Envoy has ended, `{"away": ""}` when it is back; and `{"leaving": true}` when it is about to end.

Ids are public: they stand in leases and Services. So every message is of the key that its connection was opened with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from .attachments import Attachments
from .certificates import CertificateError, Termination
from .forward import Connection
from .records import answerer
from .spec import Spec, SpecError
from .tasks import background
from .view import NotNowError, RefusedError

log = logging.getLogger("agent")

BATCH_SECONDS = 0.1
BATCH_LINES = 500
"""Requests told in one batch, at most; the rest is only counted."""
LINE_BYTES = 1 << 20
MESSAGES = 256
QUEUED_BYTES = 8 << 20
"""An engine that asks faster than it is answered, by more than so many or so much, is hung up on."""
UNREAD_BYTES = 8 << 20
"""So is one that leaves more of what it is told unread."""
Do = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
ASIDE = 8
"""So many questions of what can be reached, and of what speaks TLS how, are worked on at a time: each makes
connections."""


class Desk:
    """One session. `send` writes text to it."""

    def __init__(self, attachments: Attachments, connection: Connection, channel: Any) -> None:
        self._attachments = attachments
        self._connection = connection
        self._channel = channel
        self._rest = ""
        self._queue: asyncio.Queue[tuple[dict[str, Any], int]] = asyncio.Queue()
        """Messages, and how many characters each has."""
        self._unanswered = 0
        self._characters = 0
        """Of what is unanswered, be it in the queue or on its way aside."""
        self._lines: list[str] = []
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By Service, then by who answered (`records.answerer`)."""
        self._timer: asyncio.TimerHandle | None = None
        self._stuck = False
        self._ended = False
        self._hung_up = False
        self._aside: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(ASIDE)
        self._task = background(self._work(), name="desk")

    def begin(self) -> None:
        """The session is open."""
        self._attachments.came(self)

    def received(self, text: str) -> None:
        """What the engine says."""
        if self._hung_up:
            return
        self._attachments.beat(self)  # anything is a sign of life
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > LINE_BYTES:
            self._hang_up("a message without end")
        for line in lines:
            try:
                message = json.loads(line)
                if message.get("do") == "beat":
                    continue
            except (ValueError, AttributeError, RecursionError):
                log.warning("an unreadable message")
                continue
            if self._unanswered >= MESSAGES or self._characters + len(line) > QUEUED_BYTES:
                self._hang_up("more messages than can be answered")
                return
            self._unanswered += 1
            self._characters += len(line)
            self._queue.put_nowait((message, len(line)))

    def _hang_up(self, why: str) -> None:
        log.warning("an engine is hung up on: %s", why)
        self._hung_up, self._rest = True, ""
        self._channel.abort()  # `close` would keep what waits until the engine reads it

    async def _work(self) -> None:
        """One message after the other: what the engine asks for has an order."""
        with contextlib.suppress(OSError):  # then the first attachment says so
            await self._attachments.warm()
        while True:
            message, size = await self._queue.get()
            if message.get("do") in ("reach", "hello"):
                self._answer_aside(message, size, self._look)
                continue
            answer = await self._found(message, self._do)
            if message.get("do") == "attach" and message.get("probe") and "error" not in answer:
                self._answer_aside(message, size, partial(self._probed, answer))
                continue
            self._tell(message, answer)
            self._answered(size)

    def _answer_aside(self, message: dict[str, Any], size: int, do: Do) -> None:
        """It can take seconds, and changes nothing that has an order: others wait for no pod that is silent."""

        async def answer() -> None:
            async with self._slots:
                self._tell(message, await self._found(message, do))
            self._answered(size)

        task = background(answer(), name=str(message.get("do")))
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    def _answered(self, size: int) -> None:
        self._unanswered -= 1
        self._characters -= size

    async def _found(self, message: dict[str, Any], do: Do) -> dict[str, Any]:
        try:
            return await do(message)
        except (RefusedError, SpecError, CertificateError) as problem:
            return {"error": str(problem), "again": isinstance(problem, NotNowError)}
        except Exception as problem:  # of one message; the next ones are to be answered
            log.exception("a message of the engine's")
            return {"error": f"{type(problem).__name__}: {problem}"}

    def _tell(self, message: dict[str, Any], answer: dict[str, Any]) -> None:
        if isinstance(number := message.get("n"), int):
            self._send({"answer": number, **answer})

    async def _look(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["do"] == "reach":
            return {"unreached": await self._attachments.reach(str(message["id"]), self._connection)}
        ports = {
            int(port): tuple((str(host), int(number)) for host, number in known)
            for port, known in message["ports"].items()
        }
        return {"ports": await self._attachments.look(str(message["service"]), ports, str(message["server"]))}

    async def _probed(self, answer: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "unreached": await self._attachments.unreached(Spec.read(message["spec"]))}

    async def _do(self, message: dict[str, Any]) -> dict[str, Any]:
        match message.get("do"):
            case "attach":
                spec = Spec.read(message["spec"])
                tls = {int(port): each and Termination.read(each) for port, each in message.get("tls", {}).items()}
                listeners = await self._attachments.attach(spec, self._connection, self, tls)
                return {"listeners": {str(port): number for port, number in listeners.items()}}
            case "doors":
                return await self._attachments.doors(str(message["id"]), message["pods"], self._connection)
            case "led":
                await self._attachments.led(str(message["id"]), self._connection)
            case "barred":
                await self._attachments.barred(str(message["id"]), self._connection)
            case "earlier":
                return await self._attachments.earlier(str(message["id"]), self._connection)
            case "renew":
                tls = {int(port): Termination.read(each) for port, each in message["tls"].items()}
                await self._attachments.renew(str(message["id"]), self._connection, tls)
            case "detach":
                await self._attachments.detach(str(message["id"]), self._connection)
            case "local":
                deaf = frozenset(map(int, message.get("deaf", ())))  # an older engine says nothing of it
                udp = frozenset(map(int, message.get("deaf_udp", ())))
                await self._attachments.tell(str(message["id"]), self._connection, bool(message["up"]), deaf, udp)
            case other:
                raise RefusedError(f"this agent doesn't know {other!r}: is it older than this devloop?")
        return {}

    def leaving(self) -> None:
        """This agent is about to end."""
        self._send({"leaving": True})

    def away(self, why: str) -> None:
        """Envoy is away, and why; empty: it is back."""
        self._send({"away": why})

    def heard(self, lines: list[str]) -> None:
        """Requests, told in batches."""
        for each in lines:
            self._counts[each.split("\t", 2)[1]][answerer(each)] += 1
        self._lines += lines[: max(0, BATCH_LINES - len(self._lines))]
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._batch)

    def _batch(self) -> None:
        self._timer = None
        if self._stuck:  # the developer's line is full of something more important
            self._lines.clear()
            self._timer = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._batch)
            return
        lines, counts = self._lines, self._counts
        self._lines, self._counts = [], defaultdict(Counter)
        self._send({"requests": lines, "counts": counts, "holders": self._attachments.holders_of(counts)})

    def _send(self, message: dict[str, Any]) -> None:
        if self._ended or self._hung_up:
            return
        with contextlib.suppress(OSError):  # it is being closed, and `ended` comes
            self._channel.write(json.dumps(message) + "\n")
        if self._stuck and self._channel.get_write_buffer_size() > UNREAD_BYTES:
            self._hang_up("it reads nothing of what it is told")

    def stuck(self, now: bool) -> None:
        """Whether the channel's window is used up."""
        self._stuck = now

    def ended(self) -> None:
        """The session or its connection is over."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._task.cancel()
        for each in self._aside:
            each.cancel()
        task = background(self._attachments.left(self), name="leaving")
        _LEAVING.add(task)
        task.add_done_callback(_LEAVING.discard)


_LEAVING: set[asyncio.Future[None]] = set()

"""`devloop terminal`: the keyboard goes to a service, and what its process prints comes here."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator

from devloop.commands.common import state_folder
from devloop.control.client import ControlClient
from devloop.control.keyboard import LEAVE, Leaving, LineEditor
from devloop.errors import DevloopError, EngineError, ServiceError
from devloop.escapes import words
from devloop.protocol import ServiceStatus, Snapshot, State, TerminalOutput
from devloop.terminal import unguarded

TAIL = 8 * 1024
"""Bytes to begin with, of what was printed before: about a screen."""
QUIET = 0.3
"""Seconds without output after which, when its input is at its end, the command takes the answer for complete."""
PATIENCE = 3.0
"""Seconds that such an answer is waited for at most."""
CHUNK = 16 * 1024
"""Bytes sent in one request."""
_OVER = (State.FAILED, State.CRASH_LOOP, State.COMPLETED, State.STOPPED, State.OFF, State.REMOTE)
"""States in which no process follows by itself."""
_CLEAN = "\x1b[0m\x1b[?25h\x1b[?1l\x1b>\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1049l"
"""Gives back what the service's program may have set of this terminal."""


def terminal(args: argparse.Namespace) -> int:
    """`devloop terminal`. Exit code 1 if the service has failed."""
    return asyncio.run(_terminal(args))


async def _terminal(args: argparse.Namespace) -> int:
    async with await ControlClient.connect(state_folder(args).socket) as client:
        await client.subscribe()
        return await Attached(client, args.service).run()


class Attached:
    """One terminal, or pipe, that is attached to one service."""

    def __init__(self, client: ControlClient, service: str) -> None:
        self._client = client
        self._service = service
        self._status: ServiceStatus
        self._raw = sys.stdin.isatty()
        self._keys: asyncio.Queue[bytes] = asyncio.Queue()
        self._leaving = Leaving()
        self._editor = LineEditor()
        self._printed = asyncio.Event()
        self._started = False
        self._column_zero = True

    async def run(self) -> int:
        """Until the user leaves, the input is at its end, or the service is. The exit code."""
        events = self._client.events()
        first = await anext(events)
        assert isinstance(first, Snapshot)
        columns, rows = self._size()
        await self._client.call("terminal_open", service=self._service, columns=columns, rows=rows, tail=TAIL)
        self._status = next(s for s in first.services if s.name == self._service)
        if self._status.state in _OVER:
            reason = f": {self._status.reason}" if self._status.reason else ""
            raise ServiceError(
                f"{self._service} does not run, it is {self._status.state}{reason}",
                hint=f"start it with `devloop up {self._service}` or `devloop restart {self._service}`",
            )
        loop = asyncio.get_running_loop()
        with _raw() if self._raw else contextlib.nullcontext():
            if self._raw:
                self._say(f"the keyboard goes to {self._service} now; Ctrl-P Ctrl-Q gives it back")
            watching = loop.create_task(self._watch(events))
            typing = loop.create_task(self._type() if self._raw else self._pipe())
            resized = asyncio.Event()
            resizing = loop.create_task(self._resize(resized))
            loop.add_signal_handler(signal.SIGWINCH, resized.set)
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, typing.cancel)
            try:
                await asyncio.wait([watching, typing], return_when=asyncio.FIRST_COMPLETED)
            finally:
                loop.remove_signal_handler(signal.SIGWINCH)
                loop.remove_reader(sys.stdin.fileno()) if self._raw else None
                for task in (watching, typing, resizing):
                    task.cancel()
                results = await asyncio.gather(watching, typing, resizing, return_exceptions=True)
        code = 0
        for result in results:
            if isinstance(result, Exception):
                raise result
            if isinstance(result, int):
                code = result
        return code

    # What comes from the service.

    async def _watch(self, events: object) -> int:
        assert hasattr(events, "__aiter__")
        async for event in events:
            match event:
                case TerminalOutput() if event.service == self._service:
                    self._print(event)
                case ServiceStatus() if event.name == self._service:
                    if (code := self._changed(event)) is not None:
                        return code
                case Snapshot():
                    # It takes the place of what was still to be told of each service.
                    now = next((each for each in event.services if each.name == self._service), None)
                    if now is None:
                        self._say(f"{self._service} is gone from devloop.toml")
                        return 0
                    if (code := self._changed(now)) is not None:
                        return code
        raise EngineError("the engine is gone", hint="`devloop up` starts it again")

    def _print(self, output: TerminalOutput) -> None:
        data = base64.b64decode(output.data)
        if output.starts:
            self._say(f"{self._service} has ended and starts again; this terminal stays")
        if output.missed:
            self._say(f"{output.missed} bytes came too quickly to be shown")
        if self._raw and not self._status.tty:
            data = data.replace(b"\n", b"\r\n")
        if data:
            self._column_zero = data.endswith(b"\n")
            self._write(data)
            self._printed.set()

    def _write(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def _changed(self, status: ServiceStatus) -> int | None:
        """The exit code, if no process follows by itself."""
        self._status = status
        if status.state in _OVER:
            self._say(f"{self._service} is {status.state}{f': {status.reason}' if status.reason else ''}")
            return int(status.state in (State.FAILED, State.CRASH_LOOP))
        return None

    def _say(self, text: str) -> None:
        sys.stdout.flush()
        start = "" if self._column_zero or not self._raw else "\r\n"
        end = "\r\n" if self._raw else "\n"
        unguarded(sys.stderr).write(f"{start}devloop: {words(text)}{end}")
        sys.stderr.flush()
        self._column_zero = True

    # What goes to it.

    async def _type(self) -> None:
        """Keys, until the ones that give the keyboard back."""
        fd = sys.stdin.fileno()

        def readable() -> None:
            try:
                data = os.read(fd, CHUNK)
            except OSError:
                data = b""
            if not data:  # the terminal is gone
                asyncio.get_running_loop().remove_reader(fd)
                data = LEAVE
            self._keys.put_nowait(data)

        asyncio.get_running_loop().add_reader(fd, readable)
        while True:
            data, leave = self._leaving.feed(await self._keys.get())
            await self._send(data)
            if leave:
                self._say(f"{self._service} goes on without the keyboard")
                return

    async def _send(self, data: bytes) -> None:
        if not self._status.tty:
            edited = self._editor.feed(data)
            if edited.echo:
                self._write(edited.echo)
                self._column_zero = edited.echo.endswith(b"\n")
            if edited.interrupt:
                await self._call("terminal_interrupt")
            data = edited.send
        if data:
            await self._call("terminal_type", data=base64.b64encode(data).decode())

    async def _call(self, method: str, **params: str) -> None:
        try:
            await self._client.call(method, service=self._service, **params)
        except ServiceError as error:  # it is between two processes
            self._say(f"{error.what}. {error.hint or ''}")

    async def _pipe(self) -> None:
        """What stands in a pipe or a file, then the answer to it."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        async def send(data: bytes) -> None:
            self._printed.clear()
            await self._client.call("terminal_type", service=self._service, data=base64.b64encode(data).decode())

        def end(error: BaseException | None) -> None:
            if not over.done():
                over.set_exception(error) if error else over.set_result(None)

        def read() -> None:
            error: BaseException | None = None
            try:
                while data := os.read(sys.stdin.fileno(), CHUNK):
                    asyncio.run_coroutine_threadsafe(send(data), loop).result()
            except (OSError, DevloopError) as fault:
                error = fault
            with contextlib.suppress(RuntimeError):  # the loop is over
                loop.call_soon_threadsafe(end, error)

        threading.Thread(target=read, name="stdin", daemon=True).start()
        await over
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    self._printed.clear()
                    async with asyncio.timeout(QUIET):
                        await self._printed.wait()

    # Its size.

    @staticmethod
    def _size() -> tuple[int, int]:
        for stream in (sys.stdout, sys.stdin):
            with contextlib.suppress(OSError, ValueError):
                columns, rows = os.get_terminal_size(stream.fileno())
                if columns and rows:
                    return columns, rows
        return shutil.get_terminal_size()

    async def _resize(self, resized: asyncio.Event) -> None:
        while True:
            await resized.wait()
            resized.clear()
            columns, rows = self._size()
            await self._client.call("terminal_resize", service=self._service, columns=columns, rows=rows)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """This terminal passes every key on, until the end of the block."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what was typed already is kept
    try:
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):
            if sys.stdout.isatty():
                unguarded(sys.stdout).write(_CLEAN)
                sys.stdout.flush()
            termios.tcsetattr(fd, termios.TCSADRAIN, before)

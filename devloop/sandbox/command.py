"""Commands in a pod's namespaces, run by its holder: a container's process, a probe, an exec.

Everything happens on the event loop. What a command prints goes to a callback or a stream; its end is a future.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devloop.errors import RemoteError
from devloop.local.process import Ended, Holder

_CHUNK = 1 << 16
_LINE = 1 << 16
"""Bytes after which a line without an end is told as it is."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a command is started with."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path


class Command:
    """One command: a `JobListener` with two futures."""

    def __init__(self, holder: Holder, job: str) -> None:
        loop = asyncio.get_running_loop()
        self.job = job
        self.pid: int | None = None
        self.started: asyncio.Future[str] = loop.create_future()
        """"" when it runs, else why it could not be started."""
        self.ended: asyncio.Future[int] = loop.create_future()
        """Its exit code, negative for a signal; 128 if it could not be started, as container runtimes say."""
        self._holder = holder
        self._pipes: list[Pipe] = []

    def start(
        self,
        how: Start,
        output: tuple[int, int],
        *,
        stdin: int | None = None,
        main: bool = False,
        pipes: tuple[Pipe, ...] = (),
    ) -> None:
        """Start it; the descriptors stay the caller's. `pipes` are read to their end when it has ended."""
        self._pipes = list(pipes)
        self._holder.start(
            self.job, how.argv, cwd=how.cwd, env=how.env, output=output, listener=self, main=main, stdin=stdin
        )

    def stop(self, number: int = signal.SIGTERM, timeout: float = 0.0) -> None:
        """Ask it to end; SIGKILL follows for the whole tree."""
        if not self.ended.done() and self.job in self._holder.jobs:
            self._holder.stop(self.job, number, timeout)

    def job_started(self, pid: int, at: int) -> None:
        """See JobListener."""
        self.pid = pid
        _set(self.started, "")

    def job_failed(self, error: str, hint: str) -> None:
        """See JobListener."""
        self._finish()
        _set(self.started, error)
        _set(self.ended, 128)

    def job_ended(self, ended: Ended) -> None:
        """See JobListener."""
        self._finish()
        _set(self.started, "the process that holds its pod was killed")
        _set(self.ended, ended.code)

    def _finish(self) -> None:
        for pipe in self._pipes:
            pipe.finish()


def _set(future: asyncio.Future[str] | asyncio.Future[int], value: str | int) -> None:
    if not future.done():
        future.set_result(value)  # type: ignore[arg-type]


class Pipe:
    """What a command prints, to a callback. Give `write` to the command, then `handed_over`."""

    def __init__(self, heard: Callable[[bytes], None]) -> None:
        self._heard = heard
        self._read, self.write = os.pipe()
        self._open = True
        os.set_blocking(self._read, False)
        asyncio.get_running_loop().add_reader(self._read, self._readable)

    def handed_over(self) -> None:
        """The command has its end: ours is closed."""
        os.close(self.write)

    def _readable(self) -> None:
        try:
            data = os.read(self._read, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._heard(data)
        else:
            self._close()

    def finish(self) -> None:
        """Read what is there, then close: something may have outlived the command, and hold the other end."""
        while self._open:
            try:
                data = os.read(self._read, _CHUNK)
            except BlockingIOError:
                data = b""
            if not data:
                self._close()
            else:
                self._heard(data)

    def _close(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._read)
            os.close(self._read)


class Lines:
    """Bytes in, lines out."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._rest = b""

    def heard(self, data: bytes) -> None:
        """Some more bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for each in lines:
            self._tell(each.removesuffix(b"\r").decode(errors="replace"))
        if len(self._rest) > _LINE:
            self.end()

    def end(self) -> None:
        """The last line, if it had no end."""
        rest, self._rest = self._rest, b""
        if rest:
            self._tell(rest.decode(errors="replace"))


class Exec:
    """An `ExecStream`: a command with both ends of its standard streams here.

    Sockets and not pipes: the far end switches its input to non-blocking, and that must not be its output too.
    """

    def __init__(self, holder: Holder, job: str) -> None:
        self._command = Command(holder, job)
        self._stderr = bytearray()
        self._reader: asyncio.StreamReader
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self, how: Start) -> None:
        """Start it. Raises RemoteError."""
        pipe = Pipe(self._stderr.extend)
        into, stdin = socket.socketpair()
        out, stdout = socket.socketpair()
        try:
            self._command.start(how, (stdout.fileno(), pipe.write), stdin=stdin.fileno(), pipes=(pipe,))
        finally:
            pipe.handed_over()
            stdin.close()
            stdout.close()
        _, writer = await asyncio.open_unix_connection(sock=into)
        self._writers.append(writer)
        self._reader, out_writer = await asyncio.open_unix_connection(sock=out)
        self._writers.append(out_writer)
        if problem := await self._command.started:
            await self.close()
            raise RemoteError(problem)

    async def send(self, data: bytes) -> None:
        """See ExecStream."""
        writer = self._writers[0]
        writer.write(data)
        with contextlib.suppress(OSError):  # its end is told by `receive`
            await writer.drain()

    async def receive(self) -> bytes:
        """See ExecStream."""
        try:
            return await self._reader.read(1 << 18)
        except OSError:
            return b""

    def errors(self) -> str:
        """See ExecStream."""
        text = self._stderr.decode(errors="replace").strip()
        code = self._command.ended.result() if self._command.ended.done() else None
        return text if code is None else f"{text} (it ended with {code})".strip()

    async def close(self) -> None:
        """See ExecStream."""
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._command.stop(signal.SIGKILL)


async def collect(holder: Holder, job: str, how: Start, timeout: float) -> tuple[int, bytes, bytes]:
    """Run a command to its end: (exit code, stdout, stderr); -1 if it could not be started.

    Raises TimeoutError; its tree is ended then, and when this is cancelled.
    """
    out, err = bytearray(), bytearray()
    command = Command(holder, job)
    pipes = (Pipe(out.extend), Pipe(err.extend))
    try:
        command.start(how, (pipes[0].write, pipes[1].write), pipes=pipes)
    finally:
        for pipe in pipes:
            pipe.handed_over()
    try:
        async with asyncio.timeout(timeout):
            code = await asyncio.shield(command.ended)
            return (-1 if command.started.result() else code), bytes(out), bytes(err)
    finally:
        command.stop(signal.SIGKILL)

"""Envoy's parent. Where Envoy has a container of its own, `python3 -m devloop.agent.runner` is PID 1 of it.

Two containers of a pod share no limit of memory: what strangers make Envoy hold ends Envoy, and the SSH server goes on;
what a developer makes the SSH server hold ends that one, and Envoy goes on with what it was told. They share a folder.
In it the runner listens on a unix socket for the agent, and one connection is one life of Envoy's:

- the agent connects: Envoy is started, or found running, as its last agent has left it;
- what Envoy prints comes to the agent, in frames: a byte (1 or 2, the descriptor), four for the length, the text;
- Envoy ends: the connection does. The agent connects again, and with that Envoy is started again;
- the agent ends: Envoy goes on. Nobody but an agent starts it, so a pod in which nothing is attached has none.

After SIGTERM the runner waits until the agent has left: it leads everything back first, and Envoy serves meanwhile.

    DEVLOOP_AGENT_ENVOY  the socket
    DEVLOOP_AGENT_STATE  the folder with bootstrap.json, which the agent writes (/tmp/devloop)
    ENVOY                the program
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("agent.runner")

HEAP_BYTES = 256 << 20
"""Beyond parts of this Envoy does less and less for whom it does not know; see `envoy.py`."""
DATA_BYTES = HEAP_BYTES + (96 << 20)
"""The kernel gives it no more (RLIMIT_DATA): Envoy ends by itself and is started again within some tenths of a second.
The container's limit is above that; who reaches that one waits for the kubelet, ever longer each time."""
DRAIN_SECONDS = 3600
"""How long Envoy lets connections of a listener go on that it has to replace: one whose port speaks another protocol by
now. They are asked to connect anew with each answer."""
UNREAD_BYTES = 1 << 20
"""What Envoy prints while the agent does not read it is dropped beyond this: Envoy must not wait for the agent."""
HEADER = struct.Struct(">BI")
END_SECONDS = 1.0


async def launch(
    binary: str, folder: Path, output: Callable[[], asyncio.SubprocessProtocol]
) -> asyncio.SubprocessTransport:
    """Start Envoy with `folder`/bootstrap.json, and with the bounds above. OSError."""
    transport, _ = await asyncio.get_running_loop().subprocess_exec(
        output,
        *(binary, "-c", str(folder / "bootstrap.json")),
        *("--disable-hot-restart", "--log-level", "warning", "--concurrency", str(workers())),
        *("--file-flush-interval-msec", "50", "--drain-time-s", str(DRAIN_SECONDS)),
        *("--drain-strategy", "immediate"),
        stdin=None,
    )
    with contextlib.suppress(OSError, ValueError):  # it has ended again, or the limit is lower already
        resource.prlimit(transport.get_pid(), resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    return transport


def workers() -> int:
    """Threads of Envoy's: one for each processor, up to four."""
    return max(1, min(4, len(os.sched_getaffinity(0))))


class Runner(asyncio.SubprocessProtocol):
    """Envoy and whoever is told of it. There is one agent at a time; a second one takes the first one's place."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._agent: asyncio.StreamWriter | None = None
        self._process: asyncio.SubprocessTransport | None = None
        self._ended = asyncio.Event()
        self._ended.set()
        self._starting = asyncio.Lock()
        self._rest = {1: b"", 2: b""}
        self.alone = asyncio.Event()
        """No agent is connected."""
        self.alone.set()

    async def agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection, for as long as it lasts."""
        if self._agent is not None:
            self._agent.close()
        self._agent = writer
        self.alone.clear()
        try:
            async with self._starting:
                if self._process is None and self._agent is writer:
                    self._ended.clear()
                    self._rest = {1: b"", 2: b""}
                    try:
                        self._process = await launch(self._binary, self._folder, lambda: self)
                    except OSError as problem:
                        self._ended.set()
                        log.warning("Envoy can't be started: %s", problem)
                        return
            await reader.read()  # the agent says nothing; this is its end
        except ConnectionError:
            pass
        finally:
            writer.close()
            if self._agent is writer:
                self._agent = None
                self.alone.set()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """To the agent, if it reads; whole lines, so that what is dropped is no part of one."""
        whole, end, self._rest[fd] = (self._rest[fd] + data).rpartition(b"\n")
        whole += end
        if not whole:
            return
        if self._agent is not None and self._agent.transport.get_write_buffer_size() < UNREAD_BYTES:
            self._agent.write(HEADER.pack(fd, len(whole)) + whole)
        elif fd != 1:
            sys.stderr.write(whole.decode(errors="replace"))

    def process_exited(self) -> None:
        """The agent learns it by the end of its connection."""
        code = self._process.get_returncode() if self._process is not None else None
        log.warning("Envoy has ended (%s)", code)
        if self._process is not None:
            self._process.close()
        self._process = None
        self._ended.set()
        if self._agent is not None:
            self._agent.close()

    async def close(self) -> None:
        """End Envoy."""
        async with self._starting:
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                try:
                    async with asyncio.timeout(END_SECONDS):
                        await self._ended.wait()
                except TimeoutError:
                    self._process.kill()


async def serve(binary: str, folder: Path, socket: Path, stopped: asyncio.Event) -> None:
    """Until `stopped` and the agent has gone. OSError."""
    runner = Runner(binary, folder)
    socket.parent.mkdir(parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)  # noqa: ASYNC240 (of a container that was killed; nothing else runs yet)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(runner.agent, str(socket))
    finally:
        os.umask(before)
    try:
        await stopped.wait()
        await runner.alone.wait()
    finally:
        server.close()
        await runner.close()


async def run() -> None:
    """As PID 1."""
    stopped = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    folder = Path(os.environ.get("DEVLOOP_AGENT_STATE", "/tmp/devloop"))
    socket = Path(os.environ.get("DEVLOOP_AGENT_ENVOY") or folder / "envoy.sock")
    await serve(os.environ["ENVOY"], folder, socket, stopped)


def main() -> int:
    """The exit code is 0 after a signal and 1 when there is nothing to run."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        asyncio.run(run())
    except (OSError, KeyError) as problem:
        print(f"devloop agent: Envoy can't be run: {problem!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

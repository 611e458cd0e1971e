"""Envoy's files: written whole, moved into place, and waited for until Envoy has them; and Envoy's life.

Envoy is a child of this process, or runs in a container of its own (`runner.py`). There it outlives this process, and
the next one takes it up with the files that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from . import envoy, memory
from .runner import HEADER, launch
from .tasks import background

log = logging.getLogger("agent.envoy")

TAKEN_SECONDS = 5.0
ADMIN_SECONDS = 2.0
POLL_SECONDS = 0.002
RESPAWN_SECONDS = 0.1
END_SECONDS = 1.0
HURRY_SECONDS = 2.5
"""So long rests are short: until each connection that was busy has been answered, and told to connect anew by that."""
FIRST_SECONDS = 8.0
"""The same of the first start, which may have to wait until the node has started the other container."""
_STATS = "version_text|update_rejected|total_listeners_warming|warming_clusters"
_CONNECTIONS = re.compile(r"listener\.(\d+)\.downstream_(?:pre_)?cx_active: (\d+)")


class GatewayError(Exception):
    """Envoy did not take a configuration; the text is what it said."""


class RejectedError(GatewayError):
    """Envoy has refused it, and would again."""


class Output(asyncio.SubprocessProtocol):
    """What Envoy prints: its access log on one descriptor, its own words on the other."""

    def __init__(self, lines: Callable[[list[str]], None], ended: asyncio.Future[None]) -> None:
        self._lines = lines
        self._ended = ended
        self._rest = {1: b"", 2: b""}
        self.said: list[str] = []

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Whole lines, as many as there are."""
        *whole, self._rest[fd] = (self._rest[fd] + data).split(b"\n")
        text = [each.decode(errors="replace") for each in whole]
        if fd == 1:
            if text:
                self._lines(text)
            return
        self.said = (self.said + text)[-20:]
        for each in text:
            log.warning("%s", each[:500])

    def process_exited(self) -> None:
        """It is gone."""
        if not self._ended.done():
            self._ended.set_result(None)


class Frames(asyncio.Protocol):
    """The same from a runner, whose connection lasts as long as Envoy does."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rest = bytearray()

    def data_received(self, data: bytes) -> None:
        """Whole frames, as many as there are."""
        self._rest += data
        while len(self._rest) >= HEADER.size:
            fd, length = HEADER.unpack_from(self._rest)
            if len(self._rest) < HEADER.size + length:
                return
            self._output.pipe_data_received(fd, bytes(self._rest[HEADER.size : HEADER.size + length]))
            del self._rest[: HEADER.size + length]

    def connection_lost(self, exc: Exception | None) -> None:
        """Envoy, or its container, is gone."""
        self._output.process_exited()


class Gateway:
    """Runs Envoy while there is something for it to do. `lines` hears its access log."""

    def __init__(
        self,
        folder: Path,
        binary: str,
        lines: Callable[[list[str]], None],
        folder_in_memory: Path | None = None,
        runner: Path | None = None,
    ) -> None:
        """`folder_in_memory`: one of this agent's alone for files that must not be on a disk, each for a moment.
        `runner`: the socket of who runs Envoy; None: this process does."""
        self.folder = folder
        self._runner = runner
        self._memory = folder_in_memory
        self._memory_held: int | None = None
        """See `memory.make`."""
        self._binary = binary
        self._lines = lines
        self._files: dict[str, str] = {}
        self._sure = True
        """Envoy works by these, as far as is known. Otherwise whatever comes next is written and waited for whole."""
        self._lock = asyncio.Lock()
        self._beginning = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._output: Output | None = None
        self._ended: asyncio.Future[None] | None = None
        self._transport: asyncio.BaseTransport | None = None
        self._since: float | None = None
        self.ran = False
        """It has answered once."""

    @property
    def started(self) -> bool:
        """It has been started."""
        return self._running is not None

    @property
    def away(self) -> float:
        """For how many seconds it has been away; 0 while it runs, or has never been started."""
        return time.monotonic() - self._since if self._since is not None else 0.0

    async def start(self) -> None:
        """Start Envoy with what is known; returns when it answers. A second call waits for the same. OSError."""
        async with self._beginning:
            if self._running is None:
                self._since = self._since or time.monotonic()
                if not await self._adopts():
                    self._begin()
                self._running = background(self._run(), name="envoy")
        async with asyncio.timeout(TAKEN_SECONDS if self.ran else FIRST_SECONDS):
            await self._started.wait()

    def _begin(self) -> None:
        """Files for an Envoy that knows nothing yet."""
        for each in ("eds", "rds"):
            (self.folder / each).mkdir(parents=True, exist_ok=True)
            for file in (self.folder / each).iterdir():
                file.unlink()
        if self._memory is not None:
            self._memory_held = memory.make(self._memory)
            (self._memory / "sds").mkdir()
        self._write(envoy.PRESSURE, "0\n")
        self._write("bootstrap.json", json.dumps(envoy.bootstrap(str(self.folder))))
        self._files = envoy.files([], str(self.folder))
        for name, text in self._files.items():
            self._write(name, text)

    async def _adopts(self) -> bool:
        """Whether Envoy runs as the last agent has left it; then its files are what is known."""
        if self._runner is None:
            return False
        try:
            if (await self._admin("/ready")).strip() != "LIVE":
                return False
            names = ["cds.json", "lds.json", *(f"{of}/{each.name}" for of in ("eds", "rds") for each in self._of(of))]
            found = {name: self._path(name).read_text() for name in names}
            envoy.merged(found["cds.json"], found["cds.json"])  # can be read
            for text in found.values():
                envoy.version(text)
        except (OSError, TimeoutError):
            return False
        except (ValueError, KeyError, TypeError):
            log.warning("Envoy was there, and its files can't be read: another one is started")
            with contextlib.suppress(OSError, TimeoutError):
                await self._admin("/quitquitquit", "POST")
            return False
        if self._memory is not None:
            # Envoy watches this very folder.
            self._memory_held = memory.held(self._memory) or memory.make(self._memory)
            (self._memory / "sds").mkdir(exist_ok=True)
        self._write(envoy.PRESSURE, "0\n")
        self._files = found
        log.info("Envoy was there, with %d files", len(found))
        return True

    def _of(self, kind: str) -> list[Path]:
        return list((self.folder / kind).glob("*.json"))

    async def _run(self) -> None:
        """Keep it running. What it needs is in its files, so another one goes on where the last one ended."""
        loop = asyncio.get_running_loop()
        said = False
        while True:
            ended: asyncio.Future[None] = loop.create_future()
            output = self._output = Output(self._lines, ended)
            self._show(self._files)
            try:
                self._transport = await self._launch(output)
            except OSError as problem:
                if not said:  # its container may be away for minutes
                    log.warning("Envoy can't be started: %s", problem)
                said = True
                await asyncio.sleep(RESPAWN_SECONDS)
                continue
            self._ended, said = ended, False
            try:
                await self._answers(ended)
                if not ended.done():
                    self._hide()
                    self._since, self.ran = None, True
                    self._started.set()
                    await asyncio.shield(ended)  # it is waited for when this is over, too
            finally:
                self._transport.close()  # ends it, if it has not and is a child
            self._started.clear()
            if self._since is None:
                self._since = time.monotonic()
            log.warning("Envoy has ended: %s", " | ".join(output.said[-3:]))
            await asyncio.sleep(RESPAWN_SECONDS)

    async def _launch(self, output: Output) -> asyncio.BaseTransport:
        """OSError where it can't be; while its container is away, too."""
        if self._runner is None:
            return await launch(self._binary, self.folder, lambda: output)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: Frames(output), str(self._runner)
        )
        return transport

    async def _answers(self, ended: asyncio.Future[None]) -> None:
        while not ended.done():
            with contextlib.suppress(OSError, ValueError):
                if (await self._admin("/ready")).strip() == "LIVE":
                    return
            await asyncio.sleep(0.005)

    async def apply(self, files: Mapping[str, str]) -> None:
        """Make these the configuration; returns when Envoy works by it. GatewayError if it refuses; OSError.

        Endpoints and clusters come first and go last, so that no route leads to one that isn't there. However it ends
        before it is done, a cancellation too, the files are again what they were.
        """
        async with self._lock:
            await self.start()
            old = self._files
            new = dict(files)
            if new == old and self._sure:
                return
            rejected = await self._rejections()
            changed = {name for name, text in new.items() if old.get(name) != text or not self._sure}
            unsure, self._sure = not self._sure, False
            both = envoy.merged(old["cds.json"], new["cds.json"])
            try:
                if any(name.startswith("sds/") or name in ("cds.json", "lds.json") for name in changed):
                    self._show(new)
                for name in sorted(changed):
                    if name.startswith("eds/"):
                        self._write(name, new[name])
                if both != old["cds.json"] or unsure:
                    self._write("cds.json", both)
                    await self._taken({"cluster_manager.cds.version_text": envoy.version(both)}, rejected)
                wanted: dict[str, str] = {}
                known: dict[str, str] = {}
                for name in sorted(changed):
                    if name.startswith("rds/"):
                        self._write(name, new[name])
                        # One that is as it was may belong to a listener that has gone, and then nobody reads it.
                        of = wanted if old.get(name) != new[name] else known
                        of[f".rds.{name[4:-5]}.version_text"] = envoy.version(new[name])
                if "lds.json" in changed:
                    self._write("lds.json", new["lds.json"])
                    wanted["listener_manager.lds.version_text"] = envoy.version(new["lds.json"])
                for name in changed:
                    if name.startswith("sds/"):
                        known[f"sds.{name[4:-5]}.version_text"] = envoy.version(new[name])
                await self._taken(wanted, rejected, known)
                if new["cds.json"] != both:
                    self._write("cds.json", new["cds.json"])
            except BaseException:
                # Envoy goes on with what it had, or will when it reads again; so do the files, for the next one.
                self._put_back(changed, old)
                raise
            finally:
                self._hide()
            self._files, self._sure = new, True
            for name in old.keys() - new.keys():
                self._path(name).unlink(missing_ok=True)

    def _put_back(self, changed: Collection[str], old: Mapping[str, str]) -> None:
        # Clusters after the routes to them, and what nobody has need of any more last.
        for name in sorted(changed, key=lambda name: (name not in old, name == "cds.json", name)):
            try:
                if name in old:
                    self._write(name, old[name])
                else:
                    self._path(name).unlink(missing_ok=True)
            except (OSError, GatewayError) as problem:  # a full disk: what comes next is written whole
                log.warning("%s can't be put back: %s", name, problem)

    def _show(self, files: Mapping[str, str]) -> None:
        """Let Envoy read what must not be on a disk."""
        for name, text in files.items():
            if name.startswith("sds/"):
                self._write(name, text)

    def _hide(self) -> None:
        """It has read it."""
        if self._memory is not None:
            for each in (self._memory / "sds").glob("*"):
                each.unlink(missing_ok=True)

    async def _taken(self, wanted: Mapping[str, str], rejected: int, known: Mapping[str, str] | None = None) -> None:
        """`known`: what only those have to have taken who know of it."""
        until = time.monotonic() + TAKEN_SECONDS
        while True:
            stats = await self._stats()
            if sum(int(value) for key, value in stats.items() if key.endswith("update_rejected")) > rejected:
                said = self._output.said[-1] if self._output and self._output.said else "no reason"
                raise RejectedError(f"Envoy refuses the configuration: {said[:300]}")
            missing = [
                key
                for key, text in wanted.items()
                if not any(name.endswith(key) and stats[name] == text for name in stats)
            ]
            missing += [
                key
                for key, text in (known or {}).items()
                if any(name.endswith(key) and value != text for name, value in stats.items())
            ]
            warming = int(stats.get("listener_manager.total_listeners_warming", "0"))
            if not missing and not warming:
                return
            if time.monotonic() > until:
                raise GatewayError(f"Envoy has not taken {', '.join(missing) or 'a listener'} in {TAKEN_SECONDS:g} s")
            await asyncio.sleep(POLL_SECONDS)

    async def _rejections(self) -> int:
        return sum(int(value) for key, value in (await self._stats()).items() if key.endswith("update_rejected"))

    async def _stats(self) -> dict[str, str]:
        """What Envoy says of itself, also while it is just being started anew. TimeoutError: it does not answer."""
        async with asyncio.timeout(TAKEN_SECONDS):
            while True:
                try:
                    text = await self._admin(f"/stats?filter={_STATS}")
                    break
                except TimeoutError:
                    raise  # an OSError too: it is there, and stuck
                except OSError:
                    await asyncio.sleep(POLL_SECONDS)
                    await self._started.wait()
        found: dict[str, str] = {}
        for line in text.splitlines():
            key, _, value = line.partition(": ")
            found[key] = value.strip('"')
        return found

    async def connections(self) -> dict[int, int]:
        """How many connections each listener has, by its port. OSError, TimeoutError."""
        found: dict[int, int] = {}
        for port, count in _CONNECTIONS.findall(await self._admin("/stats?filter=downstream_(pre_)?cx_active$")):
            found[int(port)] = found.get(int(port), 0) + int(count)
        return found

    async def drain(self) -> None:
        """Go on serving, and ask clients to connect anew: the next connection goes elsewhere."""
        with contextlib.suppress(OSError, TimeoutError):
            await self._admin("/drain_listeners?graceful", "POST")

    async def hurry(self) -> None:
        """End connections that rest between two requests, all Services' (Envoy knows no other measure): HTTP/2 by a
        GOAWAY, HTTP/1.1 when nothing has come for half a second more."""
        self._write(envoy.PRESSURE, "1\n")
        try:
            await asyncio.sleep(HURRY_SECONDS)
        finally:
            self._write(envoy.PRESSURE, "0\n")

    async def _admin(self, path: str, method: str = "GET") -> str:
        """What Envoy's own interface answers. OSError; TimeoutError after `ADMIN_SECONDS`."""
        async with asyncio.timeout(ADMIN_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(self.folder / "admin.sock"))
            try:
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"chunked" in head.lower():
            try:
                body = unchunked(body)
            except ValueError as problem:
                raise ConnectionResetError("half an answer of Envoy's") from problem
        return body.decode(errors="replace")

    def _path(self, name: str) -> Path:
        if not name.startswith("sds/"):
            return self.folder / name
        if self._memory is None:
            raise GatewayError("this pod has no files in memory (/dev/shm), where keys could be handed to Envoy")
        return self._memory / name

    def _write(self, name: str, text: str) -> None:
        target = self._path(name)
        draft = target.with_suffix(".draft")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        draft.replace(target)  # Envoy watches for moves

    async def close(self) -> None:
        """End Envoy."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None
            if self._ended is not None:
                await asyncio.wait([self._ended], timeout=END_SECONDS)
            if self._memory is not None:
                shutil.rmtree(self._memory, ignore_errors=True)
            if self._memory_held is not None:
                os.close(self._memory_held)
                self._memory_held = None


def unchunked(body: bytes) -> bytes:
    """A body in chunks (RFC 9112, 7.1) as a whole."""
    out = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        if not length:
            break
        out.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(out)

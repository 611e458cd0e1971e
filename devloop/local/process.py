"""Processes of services, through the holders (`devloop.local.holder`).

A `Holder` is the engine's end of one service's holder. `start` gives a `Job`, whose life is told to a
listener; everything happens on the event loop and nothing blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from devloop.errors import EngineError
from devloop.failures import explained
from devloop.local import holder
from devloop.paths import read_file

RUN_VARIABLE = "DEVLOOP_RUN"
"""Every process of an engine carries the engine's run id in this variable, to be found if all else fails."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended."""

    code: int
    """Exit code; negative for a signal."""
    left_behind: int
    survivors: tuple[str, ...]
    at: int
    """Monotonic nanoseconds at which its first process was reaped."""


class JobListener(Protocol):
    """Who is told of a job. `job_started` or `job_failed` comes first, after the former `job_ended`."""

    def job_started(self, pid: int, at: int) -> None:
        """It runs since `at`, monotonic nanoseconds."""

    def job_failed(self, error: str, hint: str) -> None:
        """It could not be started."""

    def job_ended(self, ended: Ended) -> None:
        """It has ended, and everything that descends from it."""


class Holder:
    """One service's holder, from the engine's side."""

    def __init__(self, service: str, sock: socket.socket, lost: Callable[[str], None]) -> None:
        self.service = service
        self._sock = sock
        self._lost = lost
        self._jobs: dict[str, tuple[JobListener, Sequence[str], Path]] = {}
        self._buffer = bytearray()
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        """What the socket did not take yet, in order, each with descriptors of its own that go with it."""
        sock.setblocking(False)
        # Most environments fit; what does not is sent as the holder reads, for a send must not block the loop.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
        asyncio.get_running_loop().add_reader(sock, self._readable)

    @property
    def jobs(self) -> tuple[str, ...]:
        """Names of the jobs that have not ended."""
        return tuple(self._jobs)

    def start(
        self,
        job: str,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: tuple[int, int],
        listener: JobListener,
        main: bool = False,
        stdin: int | None = None,
        tty: bool = False,
        keep: bool = False,
    ) -> None:
        """Start a process in a session of its own. Raises EngineError if this process has no descriptors left for it.

        `output` are descriptors for its stdout and stderr, `stdin` one for its input (/dev/null without); the caller
        keeps and closes its own. `main` marks the service's own process, to which orphans are counted that can't be
        told apart. With `tty`, all three are one terminal, which becomes its session's own (tty_ioctl(2), TIOCSCTTY).
        `keep`: what it leaves behind lives on, until `dismiss`.
        """
        self._jobs[job] = (listener, argv, cwd)
        message = {
            "op": "spawn",
            "job": job,
            "argv": list(argv),
            "cwd": str(cwd),
            "env": dict(env),
            "main": main,
            "tty": tty,
            "keep": keep,
        }
        try:
            self._send(message, output if stdin is None else (*output, stdin))
        except EngineError:
            del self._jobs[job]
            raise

    def namespace(self, sock: socket.socket) -> None:
        """Have it speak as a `devloop.net.namespace.Namespace` over this socket, which the caller closes."""
        self._send({"op": "namespace"}, (sock.fileno(),))

    def signal(self, job: str, number: int, *, group: bool = False) -> None:
        """Send a signal that is no end: to the process of the job's tree, nearest to its root, that handles it.

        If none does, to the first process. With `group`, to its process group. A job that has ended is passed over.
        """
        self._send({"op": "signal", "job": job, "signal": number, "group": group})

    def stop(self, job: str, number: int, timeout: float, *, group: bool = False) -> None:
        """Ask its first process (or its whole process group) to end, once; then what that has left.

        After `timeout` seconds SIGKILL ends the whole tree.
        """
        self._send({"op": "stop", "job": job, "signal": number, "timeout": timeout, "group": group})

    def dismiss(self, timeout: float) -> None:
        """Ask what jobs with `keep` have left to end; SIGKILL follows after `timeout` seconds."""
        self._send({"op": "dismiss", "timeout": timeout})

    def close(self) -> None:
        """Let go: the holder ends what it still holds, and itself."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._drop_unsent()
        self._sock.close()

    def _send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send it whole: at once as far as the socket takes it, the rest as the holder reads.

        Raises EngineError if its descriptors can't be kept until then.
        """
        data = holder.framed(message)
        if not self._unsent:
            sent = self._take(data, fds)
            if sent == len(data):
                return
            data, fds = data[sent:], fds if not sent else ()  # they go with the first byte
            asyncio.get_running_loop().add_writer(self._sock, self._writable)
        kept: list[int] = []
        try:
            kept.extend(map(os.dup, fds))  # the caller closes its own
        except OSError as error:
            for fd in kept:
                os.close(fd)
            if not self._unsent:
                asyncio.get_running_loop().remove_writer(self._sock)
            told = explained(error)
            raise EngineError(told.what, hint=told.hint) from None
        self._unsent.append((data, tuple(kept)))

    def _take(self, data: bytes, fds: tuple[int, ...]) -> int:
        """How many bytes the socket has taken, and the descriptors with the first of them."""
        try:
            return socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # it is gone: the reader notices, and tells every listener

    def _writable(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            sent = self._take(data, fds)
            if not sent:
                return
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self._unsent[0] = data[sent:], ()
                return
            self._unsent.popleft()
        self._drop_unsent()

    def _drop_unsent(self) -> None:
        asyncio.get_running_loop().remove_writer(self._sock)
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._was_lost()
            return
        self._buffer += data
        for message in holder.frames(self._buffer):
            self._told(message)

    def _told(self, message: dict[str, Any]) -> None:
        if message["ev"] == "unheld":
            jobs, self._jobs = self._jobs, {}
            for each, _, _ in jobs.values():
                each.job_failed(*_refused("the process that is to hold it can't be started", message["errno"]))
            return
        name = message["job"]
        listener, argv, cwd = self._jobs[name]
        match message["ev"]:
            case "spawned":
                listener.job_started(message["pid"], message["at"])
            case "failed":
                del self._jobs[name]
                listener.job_failed(*explain(message, argv, cwd))
            case "ended":
                del self._jobs[name]
                survivors = tuple(message["survivors"])
                listener.job_ended(Ended(message["code"], message["left"], survivors, message["at"]))

    def _was_lost(self) -> None:
        self.close()
        jobs, self._jobs = self._jobs, {}
        self._lost(self.service)
        for listener, _, _ in jobs.values():
            listener.job_ended(Ended(-9, 0, (), time.monotonic_ns()))


def explain(message: Mapping[str, Any], argv: Sequence[str], cwd: Path) -> tuple[str, str]:
    """What a start has failed of (`devloop.local.holder.unstarted`), and what to do."""
    if message["cwd"]:
        return f"its folder is gone: {cwd}", "mend `cwd`, or the `cd` that its command begins with"
    if message["errno"] == errno.E2BIG:
        return (
            f"can't run {argv[0]}: its arguments and environment are larger than the system takes",
            "hand it large values in a file; one may have 128 KB, and all a quarter of the stack (ulimit -s)",
        )
    if message["errno"] in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return _refused(f"can't run {argv[0]}", message["errno"])
    if message["errno"] != errno.ENOENT:
        return f"can't run {argv[0]}: {message['error']}", "is it an executable file?"
    interpreter = _interpreter(message["file"])
    if interpreter.endswith("\r"):
        return (
            f"can't run {argv[0]}: its first line ends as on Windows, so its interpreter is {interpreter!r}",
            "save it with Unix line ends; `git config core.autocrlf input` keeps them",
        )
    if interpreter:
        return f"can't run {argv[0]}: there is no {interpreter}, which its first line names", "is it installed?"
    return f"no such program: {argv[0]}", "is it installed, and on PATH? A path is taken from `cwd`"


def _refused(what: str, number: int) -> tuple[str, str]:
    """What a limit of the machine's has prevented, and what to do."""
    told = explained(OSError(number, os.strerror(number)))
    return f"{what}: {os.strerror(number)}", told.hint or ""


def _interpreter(file: str) -> str:
    """What a script's first line says that runs it; "" if that can't be told."""
    with contextlib.suppress(OSError):
        first = read_file(Path(file or os.devnull), 256, whole=False).partition(b"\n")[0]
        if first.startswith(b"#!"):
            return first[2:].decode(errors="replace").strip(" \t\n").split(" ")[0]
    return ""


class Holders:
    """All holders of an engine, and the root holder above them."""

    def __init__(self) -> None:
        self.run_id = os.urandom(16).hex()
        """Tells this engine's processes from all others (RUN_VARIABLE)."""
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._holders: dict[str, Holder] = {}

    def open(self) -> None:
        """Start the root holder. Needs no event loop: it comes up while the engine is still importing."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", holder.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={RUN_VARIABLE: self.run_id, "PATH": os.environ.get("PATH", os.defpath)},
                cwd="/",
            )
        self._sock = ours

    def expect_namespaces(self) -> None:
        """Holders will be asked for a namespace each: what that takes is loaded once, now."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                holder.send(self._sock, {"op": "namespaces"})

    @property
    def root_pid(self) -> int | None:
        """The root holder's pid, once it is open."""
        return self._process.pid if self._process is not None else None

    def get(self, service: str) -> Holder:
        """The service's holder; made if there is none. Raises EngineError if the root holder is gone."""
        found = self._holders.get(service)
        if found is None:
            if self._sock is None:
                raise EngineError("the holders are not open")
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    holder.send(self._sock, {"op": "hold", "service": service}, (theirs.fileno(),))
                except OSError:
                    ours.close()
                    raise self._no_root() from None
            found = self._holders[service] = Holder(service, ours, self._lost)
        return found

    def _no_root(self) -> EngineError:
        code = self._process.poll() if self._process is not None else None
        if code is None or code < 0:
            return EngineError("the process that holds the services was killed", hint="restart devloop")
        return EngineError(
            f"the process that holds the services has ended (exit code {code})",
            hint="its last words are in the engine's own output; restart devloop",
        )

    def release(self, service: str) -> None:
        """The service is gone for good: so goes its holder."""
        found = self._holders.pop(service, None)
        if found is not None:
            found.close()

    async def close(self) -> None:
        """End whatever is still held. Returns when the root holder has ended."""
        for service in tuple(self._holders):
            self.release(service)
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def _lost(self, service: str) -> None:
        self._holders.pop(service, None)

"""The holders: tiny processes that own the services, so that nothing outlives the engine, however it ends.

Run as a file of its own (`python -I -S holder.py FD`), with nothing of devloop imported: the root holder must
start in the time that the engine needs for its own imports. It forks one holder a service, which shares its
memory and outlives the service's restarts.

Each holder is a child subreaper (prctl(2)): whatever its service forks, double-forked daemons in sessions of
their own included, stays below it and so can be found and ended. When the engine's end of the socket closes,
for whatever reason, a holder ends everything that it holds and exits. When a holder is killed, what it held
falls to the root holder, which ends it.

Messages are JSON objects, each behind its length in four bytes; file descriptors travel beside them.

To the root holder:   {op: hold, service} + [socket for the new holder]
                      {op: namespaces}                       holders will be asked for one
To a holder:          {op: spawn, job, argv, cwd, env, main, tty} + [stdout, stderr, stdin?]
                      {op: signal, job, signal, group}
                      {op: stop, job, signal, timeout}       timeout in seconds
                      {op: namespace} + [socket]             see devloop.net.namespace, which speaks over it
From a holder:        {ev: spawned, job, pid, at}            at: monotonic nanoseconds
                      {ev: failed, job, errno, error, cwd}
                      {ev: ended, job, code, left, survivors, at}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LINUX = sys.platform == "linux"
PR_SET_NAME = 15  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
ORPHANED_GRACE = 2.0
"""Seconds that services have to end by themselves when the engine is gone."""
LAST_WORD = 1.0
"""Seconds after SIGKILL until a process that is still there is called a survivor."""
JOB_VARIABLE = "DEVLOOP_JOB"

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: Any) -> None:
    if LINUX:
        _libc.prctl(option, value, 0, 0, 0)


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """One message, whole. Raises OSError if the other end is gone."""
    data = json.dumps(message).encode()
    frame = len(data).to_bytes(4, "big") + data
    sent = socket.send_fds(sock, [frame], fds) if fds else sock.send(frame)
    if sent < len(frame):
        sock.sendall(frame[sent:])


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One message and its descriptors; None at the end. Blocks until it is whole."""
    head, fds, _, _ = socket.recv_fds(sock, 4, 4)
    while 0 < len(head) < 4:
        head += sock.recv(4 - len(head))
    if not head:
        return None
    size, data = int.from_bytes(head, "big"), b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            return None
        data += part
    message: dict[str, Any] = json.loads(data)
    return message, list(fds)


def frames(buffer: bytearray) -> list[dict[str, Any]]:
    """The whole messages at the front of `buffer`, which they are taken from."""
    messages = []
    while len(buffer) >= 4:
        size = int.from_bytes(buffer[:4], "big")
        if len(buffer) < 4 + size:
            break
        messages.append(json.loads(buffer[4 : 4 + size]))
        del buffer[: 4 + size]
    return messages


def children(pid: int) -> list[int]:
    """Direct children. /proc/PID/task/TID/children (proc(5)) where the kernel has it, else a scan."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return [p for p, parent in _parents().items() if parent == pid]


def _parents() -> dict[int, int]:
    """pid → parent's pid, for every process that there is."""
    if not LINUX:
        text = subprocess.run(["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, text=True).stdout
        return {int(pid): int(parent) for pid, parent in (line.split() for line in text.splitlines())}
    parents = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are enough, and this is the quick way
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                # The name, in brackets, may hold anything (proc(5)); the state and the parent follow it.
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    return parents


def tree(roots: list[int]) -> list[int]:
    """These processes and all that descend from them, parents first."""
    found = list(roots)
    for pid in found:  # grows while it is walked
        found += [child for child in children(pid) if child not in found]
    return found


def describe(pid: int) -> str:
    """ "pid name", for a person."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}"
    except OSError:
        return str(pid)


def _kill(pid: int, number: int, *, group: bool = False) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number) if group else os.kill(pid, number)


def _terminal_taker() -> Callable[[], object]:
    """What makes the terminal on its stdin a new session's own. It runs between fork and exec."""
    import fcntl
    import termios

    return lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _namespaces() -> Any:
    """`devloop.net.namespace`, which a project without a remote does without; the package is hidden by -I."""
    package = str(Path(__file__).parents[2])
    if package not in sys.path:
        sys.path.append(package)
    from devloop.net import namespace

    return namespace


class Job:
    """One process that was asked for, and what descends from it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], *, main: bool) -> None:
        self.name = name
        self.pid = process.pid
        self.main = main
        """Whether orphans that can't be told apart are counted as its own."""
        self.code: int | None = None
        self.ended_at = 0
        self.timeout = ORPHANED_GRACE
        self.kill_at: float | None = None
        self.give_up_at: float | None = None
        self.asked: set[int] = set()
        """Descendants that outlived the first process, and were asked to end."""
        process.returncode = 0  # reaped by waitpid(-1) below: subprocess shall not look for it


class Holder:
    """Holds the processes of one service."""

    def __init__(self, engine: socket.socket) -> None:
        self.engine: socket.socket | None = engine
        self.jobs: dict[str, Job] = {}
        self.namespace: Any = None
        """A `devloop.net.namespace.Namespace`, if the engine has asked for one."""
        self.wakeup, write = os.pipe()
        os.set_blocking(write, False)
        os.set_blocking(self.wakeup, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def run(self) -> None:
        """Until the engine is gone and nothing is left."""
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        assert self.engine is not None
        poll.register(self.engine, select.POLLIN)
        while self.engine is not None or self.jobs:
            ready = dict(poll.poll(self.wait_ms()))
            if self.wakeup in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wakeup, 4096)
            if self.namespace is not None and self.namespace.fileno() in ready and not self.namespace.obey():
                poll.unregister(self.namespace)
                self.namespace = None  # this process, and what it starts, stays where it is
            if self.engine is not None and self.engine.fileno() in ready and not self.obey(poll):
                poll.unregister(self.engine)
                self.engine.close()
                self.engine = None
                for job in self.jobs.values():
                    self.stop(job, signal.SIGTERM, min(job.timeout, ORPHANED_GRACE))
            self.reap()
            self.enforce()

    def wait_ms(self) -> int | None:
        """Milliseconds until something is due."""
        due = [at for job in self.jobs.values() for at in (job.kill_at, job.give_up_at) if at is not None]
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else None

    def obey(self, poll: select.poll) -> bool:
        """Carry out one message. False if the engine is gone."""
        assert self.engine is not None
        try:
            received = receive(self.engine)
        except OSError:
            return False
        if received is None:
            return False
        message, fds = received
        if message["op"] == "spawn":
            self.spawn(message, fds)
            return True
        if message["op"] == "namespace":
            self.namespace = _namespaces().Namespace(socket.socket(fileno=fds[0]))
            poll.register(self.namespace, select.POLLIN)
            return True
        job = self.jobs.get(message["job"])
        if job is None:
            return True  # it has ended, and the engine will read so
        if message["op"] == "signal":
            _kill(job.pid, message["signal"], group=message["group"])
        elif message["op"] == "stop":
            self.stop(job, message["signal"], message["timeout"])
        return True

    def spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        """Start a process in a session of its own; its descriptors are closed here."""
        name = message["job"]
        if self.namespace is not None:
            self.namespace.refresh()
        try:
            process = subprocess.Popen(
                message["argv"],
                stdin=fds[2] if len(fds) > 2 else subprocess.DEVNULL,
                stdout=fds[0],
                stderr=fds[1],
                cwd=message["cwd"],
                env=message["env"] | {JOB_VARIABLE: name},
                start_new_session=True,
                # Only for a terminal: with it, subprocess forks instead of vforks, which takes ten times as long.
                preexec_fn=_terminal_taker() if message["tty"] else None,
            )
        except OSError as error:
            is_cwd = not Path(message["cwd"]).is_dir()
            self.tell(ev="failed", job=name, errno=error.errno, error=error.strerror, cwd=is_cwd)
        else:
            self.jobs[name] = Job(name, process, main=message["main"])
            self.tell(ev="spawned", job=name, pid=process.pid, at=time.monotonic_ns())
        finally:
            for fd in fds:
                os.close(fd)

    def stop(self, job: Job, number: int, timeout: float) -> None:
        """Ask; SIGKILL follows after `timeout` seconds."""
        job.timeout = timeout
        if job.kill_at is None:
            job.kill_at = time.monotonic() + timeout
        if job.code is None:
            _kill(job.pid, number, group=True)

    def reap(self) -> None:
        """Take note of every process that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == 0:
                break
            for job in self.jobs.values():
                if job.pid == pid and job.code is None:
                    job.code = os.waitstatus_to_exitcode(status)
                    job.ended_at = time.monotonic_ns()
                    # The rest of its process group is asked too; what ignores that is killed in time.
                    _kill(job.pid, signal.SIGTERM, group=True)
                    job.kill_at = job.kill_at or time.monotonic() + job.timeout
        for job in tuple(self.jobs.values()):
            if job.code is None:
                continue
            rest = self.rest(job)
            if not rest:
                self.ended(job, ())
            else:
                for pid in tree(rest):
                    if pid not in job.asked:
                        job.asked.add(pid)
                        _kill(pid, signal.SIGTERM)

    def rest(self, job: Job) -> list[int]:
        """What is left of a job whose first process has ended: orphans are this holder's own children now."""
        mine = children(os.getpid())
        firsts = {other.pid for other in self.jobs.values() if other.code is None}
        orphans = [pid for pid in mine if pid not in firsts]
        if not orphans:
            return []
        return [pid for pid in orphans if self.owner(pid) is job]

    def owner(self, orphan: int) -> Job:
        """Whose descendant it was, by the variable that its environment began with."""
        main = next((job for job in self.jobs.values() if job.main), next(iter(self.jobs.values())))
        try:
            environ = Path(f"/proc/{orphan}/environ").read_bytes().split(b"\0")
        except OSError:
            return main
        prefix = f"{JOB_VARIABLE}=".encode()
        name = next((v[len(prefix) :].decode() for v in environ if v.startswith(prefix)), "")
        return self.jobs.get(name, main)

    def enforce(self) -> None:
        """End what had its time."""
        now = time.monotonic()
        for job in tuple(self.jobs.values()):
            roots = [job.pid] if job.code is None else self.rest(job)
            if job.kill_at is not None and now >= job.kill_at:
                job.kill_at = None
                job.give_up_at = now + LAST_WORD
                if job.code is None:
                    _kill(job.pid, signal.SIGKILL, group=True)
                for pid in tree(roots):
                    _kill(pid, signal.SIGKILL)
            elif job.give_up_at is not None and now >= job.give_up_at:
                job.give_up_at = None
                self.ended(job, tuple(describe(pid) for pid in tree(roots)))
            elif job.give_up_at is not None and job.code is not None:
                # Children of what was just killed fall to this holder one by one.
                for pid in tree(roots):
                    _kill(pid, signal.SIGKILL)

    def ended(self, job: Job, survivors: tuple[str, ...]) -> None:
        """Let go of a job, and say how it ended."""
        del self.jobs[job.name]
        code = -signal.SIGKILL if job.code is None else job.code
        at = job.ended_at or time.monotonic_ns()
        self.tell(ev="ended", job=job.name, code=code, left=len(job.asked), survivors=survivors, at=at)

    def tell(self, **event: Any) -> None:
        """Tell the engine, if it is there."""
        if self.engine is not None:
            with contextlib.suppress(OSError):
                send(self.engine, event)


class Root:
    """Forks holders, and ends what a holder that was killed has left."""

    def __init__(self, engine: socket.socket) -> None:
        self.engine = engine
        self.holders: set[int] = set()

    def run(self) -> None:
        """Until the engine is gone and every holder has ended."""
        poll = select.poll()
        wakeup, write = os.pipe()
        os.set_blocking(write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        poll.register(self.engine, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if wakeup in ready:
                os.read(wakeup, 4096)
                self.reap()
            if self.engine.fileno() in ready:
                try:
                    received = receive(self.engine)
                except OSError:
                    received = None
                if received is None:
                    break
                message, fds = received
                if message["op"] == "namespaces":
                    _namespaces()  # once for all: holders share it
                    continue
                pid = os.fork()
                if pid == 0:
                    self.engine.close()
                    os.close(wakeup)
                    os.close(write)
                    become_holder(message["service"], socket.socket(fileno=fds[0]))
                self.holders.add(pid)
                os.close(fds[0])
        poll.unregister(self.engine)
        self.engine.close()
        self.reap()
        while children(os.getpid()):
            if poll.poll(100):
                os.read(wakeup, 4096)
            self.reap()

    def reap(self) -> None:
        """Take note of holders that have ended; end what one that was killed has left."""
        killed = False
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] in self.holders:
                    self.holders.discard(ended[0])
                    killed = killed or ended[1] != 0
        if killed:
            for pid in tree([p for p in children(os.getpid()) if p not in self.holders]):
                _kill(pid, signal.SIGKILL)


def become_holder(service: str, engine: socket.socket) -> None:
    """The life of a forked holder; never returns."""
    code = 1
    try:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        _prctl(PR_SET_NAME, f"devloop {service}"[:15].encode())
        Holder(engine).run()
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    """The root holder; its one argument is the number of its socket."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        # Not SIG_IGN, which a service would inherit; a handler is reset by exec (execve(2)).
        signal.signal(number, lambda *_: None)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_NAME, b"devloop holders")
    Root(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()

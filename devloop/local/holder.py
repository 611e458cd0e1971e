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
To a holder:          {op: spawn, job, argv, cwd, env, main, tty, keep} + [stdout, stderr, stdin?]
                      {op: signal, job, signal, group}       to its process group, or who handles it: `recipients`
                      {op: stop, job, signal, timeout, group}  timeout in seconds
                      {op: dismiss, timeout}                 end what jobs with `keep` have left
                      {op: namespace} + [socket]             see devloop.net.namespace, which speaks over it
From a holder:        {ev: spawned, job, pid, at}            at: monotonic nanoseconds
                      {ev: failed, job, errno, error, cwd, file}  file: what the program's name led to, or ""
                      {ev: ended, job, code, left, survivors, at}
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
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
SHELLS = frozenset(("sh", "dash", "ash", "bash", "ksh", "mksh", "zsh", "busybox"))

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: Any) -> None:
    if LINUX:
        _libc.prctl(option, value, 0, 0, 0)


def framed(message: dict[str, Any]) -> bytes:
    """A message as it is sent: its length in four bytes, then JSON."""
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """One message, whole, over a socket that blocks. Raises OSError if the other end is gone."""
    frame = framed(message)
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
        ps = subprocess.Popen(["/bin/ps", "-axo", "pid=,ppid="], stdout=subprocess.PIPE, text=True)
        pairs = [line.split() for line in ps.communicate()[0].splitlines()]
        return {int(pid): int(parent) for pid, parent in pairs if int(pid) != ps.pid}
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


def _handles(pid: int, number: int) -> bool | None:
    """Whether a process catches a signal; None: it ignores it. SigCgt and SigIgn of /proc/PID/status (proc(5))."""
    caught = ignored = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            name, _, mask = line.partition(":")
            if name == "SigCgt":
                caught = int(mask, 16)
            elif name == "SigIgn":
                ignored = int(mask, 16)
    bit = 1 << (number - 1)
    return None if ignored & bit else bool(caught & bit)


def recipients(pid: int, number: int) -> list[int]:
    """Who of a tree a signal that is no end is for: the processes nearest to its root that catch it.

    A shell or a runner such as npm around the program would only die of SIGHUP. Where nobody catches it, it is for
    the root.
    """
    level = [pid]
    while level:
        found = [each for each in level if _handles(each, number) and not _is_go(each)]
        if found:
            return found
        level = [child for each in level for child in children(each)]
    return [pid]


def _is_go(pid: int) -> bool:
    """Whether it is `go run`: Go's runtime catches every signal, and the tool dies of it all the same."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "go\n"
    return False


def in_foreground(pid: int, number: int) -> list[int]:
    """What a shell that catches a signal waits for before it runs its trap (POSIX, 2.12), as far as it can be told.

    On a terminal, Ctrl-C reaches both. What a shell without job control runs in the background has /dev/null for its
    input (2.9.3.1), and what it waits for has the shell's own.
    """
    with contextlib.suppress(OSError):
        stdin = str(Path(f"/proc/{pid}/fd/0").readlink())
        if stdin == os.devnull or Path(f"/proc/{pid}/comm").read_text().strip() not in SHELLS:
            return []
        if not _handles(pid, number):
            return []
        found = []
        for child in children(pid):
            with contextlib.suppress(OSError):
                if str(Path(f"/proc/{child}/fd/0").readlink()) == stdin:
                    found += [child, *in_foreground(child, number)]
        return found
    return []


def program(name: str, cwd: str, env: dict[str, str]) -> str:
    """The file that execvp(3) would come to for this name, if it can be seen; "" if there is none."""
    folders = [""] if "/" in name else os.get_exec_path(env)
    for folder in folders:
        path = os.path.join(cwd, folder, name)  # noqa: PTH118 - an empty folder is the current one
        if os.path.isfile(path):  # noqa: PTH113 - False too where a folder may not be searched
            return path
    return ""


def unstarted(error: OSError, name: str, cwd: str, env: dict[str, str]) -> dict[str, Any]:
    """What has prevented a start, for `devloop.local.process.explain`."""
    is_cwd = not os.path.isdir(cwd)  # noqa: PTH112 - False too where a folder may not be searched
    file, number = program(name, cwd, env), error.errno
    if number in (errno.EACCES, errno.ENOTDIR) and not file and not is_cwd:
        number = errno.ENOENT  # a folder of PATH that may not be read, or is none; no other has it
    return {"errno": number, "error": error.strerror, "cwd": is_cwd, "file": file}


def is_script(file: str) -> bool:
    """Whether a file that the kernel can't run is text, which POSIX' execvp gives to sh: one without "#!"."""
    with contextlib.suppress(OSError), open(file, "rb") as opened:  # noqa: PTH123 - as short as it gets
        head = opened.read(512)
        return bool(head) and b"\0" not in head
    return False


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


def _job_of(pid: int) -> str:
    """The job that a process descends from, by the variable that its environment began with."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = f"{JOB_VARIABLE}=".encode()
    return next((v[len(prefix) :].decode(errors="replace") for v in environ if v.startswith(prefix)), "")


def _popen(argv: list[str], cwd: str, env: dict[str, str], fds: list[int], *, tty: bool) -> subprocess.Popen[bytes]:
    """A process in a session of its own. Raises OSError."""
    return subprocess.Popen(
        argv,
        stdin=fds[2] if len(fds) > 2 else subprocess.DEVNULL,
        stdout=fds[0],
        stderr=fds[1],
        cwd=cwd,
        env=env,
        start_new_session=True,
        # Only for a terminal: with it, subprocess forks instead of vforks, which takes ten times as long.
        preexec_fn=_terminal_taker() if tty else None,
    )


class Job:
    """One process that was asked for, and what descends from it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], *, main: bool, keep: bool) -> None:
        self.name = name
        self.pid = process.pid
        self.main = main
        """Whether orphans that can't be told apart are counted as its own."""
        self.keep = keep
        """Whether what outlives it lives on: a build's server, for the next build."""
        self.signal = int(signal.SIGTERM)
        """What asks it, and what it leaves behind, to end."""
        self.told = False
        """Its first process has been asked to end."""
        self.group = False
        """Its whole process group has."""
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
        self.past: dict[str, bool] = {}
        """Jobs with `keep` that have ended → whether what they have left was dismissed."""
        self.kept: dict[int, bool] = {}
        """What they have left → the same, as far as it is this holder's own child by now."""
        self.kill_kept_at: float | None = None
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
        while self.engine is not None or self.jobs or self.kept:
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
                    self.stop(job, job.signal, min(job.timeout, ORPHANED_GRACE))
                self.dismiss(ORPHANED_GRACE)
            self.reap()
            self.enforce()

    def wait_ms(self) -> int | None:
        """Milliseconds until something is due."""
        due = [at for job in self.jobs.values() for at in (job.kill_at, job.give_up_at) if at is not None]
        if self.kill_kept_at is not None:
            due.append(self.kill_kept_at)
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
        if message["op"] == "dismiss":
            self.dismiss(message["timeout"])
            return True
        job = self.jobs.get(message["job"])
        if job is None:
            return True  # it has ended, and the engine will read so
        if message["op"] == "signal":
            if message["group"]:
                _kill(job.pid, message["signal"], group=True)
            else:
                for pid in recipients(job.pid, message["signal"]):
                    _kill(pid, message["signal"])
        elif message["op"] == "stop":
            self.stop(job, message["signal"], message["timeout"], group=message["group"])
        return True

    def spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        """Start a process in a session of its own; its descriptors are closed here."""
        name = message["job"]
        if self.namespace is not None:
            self.namespace.refresh()
        argv, cwd, env = message["argv"], message["cwd"], message["env"] | {JOB_VARIABLE: name}
        try:
            try:
                process = _popen(argv, cwd, env, fds, tty=message["tty"])
            except OSError as error:
                file = program(argv[0], cwd, env)
                if error.errno != errno.ENOEXEC or not is_script(file):
                    raise
                process = _popen(["/bin/sh", file, *argv[1:]], cwd, env, fds, tty=message["tty"])
        except OSError as error:
            self.tell(ev="failed", job=name, **unstarted(error, argv[0], cwd, env))
        else:
            self.jobs[name] = Job(name, process, main=message["main"], keep=message["keep"])
            self.tell(ev="spawned", job=name, pid=process.pid, at=time.monotonic_ns())
        finally:
            for fd in fds:
                os.close(fd)

    def stop(self, job: Job, number: int, timeout: float, *, group: bool = False) -> None:
        """Ask its first process, once, or its whole group; SIGKILL follows after `timeout` seconds.

        Masters of workers (Gunicorn, Celery) and runners that forward signals (npm) expect the signal alone, and
        treat a second one as an order to drop what they do.
        """
        job.timeout = timeout
        job.signal = number
        kill_at = time.monotonic() + timeout
        if job.kill_at is None or kill_at < job.kill_at:
            job.kill_at = kill_at
        if job.code is None and (not job.told or number == signal.SIGKILL):
            job.told, job.group = True, group
            whole = group or not LINUX
            also = [] if whole else in_foreground(job.pid, number)
            _kill(job.pid, number, group=whole)
            for pid in also:
                job.asked.add(pid)
                _kill(pid, number)

    def dismiss(self, timeout: float) -> None:
        """Ask what builds have left behind to end; SIGKILL follows after `timeout` seconds."""
        self.past = dict.fromkeys(self.past, True)
        for pid, leaving in self.kept.items():
            if not leaving:
                _kill(pid, signal.SIGTERM)
        self.kept = dict.fromkeys(self.kept, True)
        if self.kept:
            self.kill_kept_at = time.monotonic() + timeout

    def reap(self) -> None:
        """Take note of every process that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == 0:
                break
            self.kept.pop(pid, None)
            for job in self.jobs.values():
                if job.pid == pid and job.code is None:
                    job.code = os.waitstatus_to_exitcode(status)
                    job.ended_at = time.monotonic_ns()
                    if not LINUX:
                        _kill(job.pid, job.signal, group=True)  # nothing else leads to what it has left
                    if not job.keep or job.told:
                        job.kill_at = job.kill_at or time.monotonic() + job.timeout
        self.find_kept()
        for job in tuple(self.jobs.values()):
            if job.code is None:
                continue
            rest = self.rest(job)
            if job.keep and not job.told:
                self.kept.update(dict.fromkeys(self.rest(job), False))
                self.past[job.name] = False
                self.ended(job, ())
                self.find_kept()
            elif not rest:
                self.ended(job, ())
            else:
                self.ask(job, rest)

    def ask(self, job: Job, rest: list[int]) -> None:
        """Ask what a job has left to end, each once. Its children are asked when they have lost it."""
        for pid in rest:
            if pid in job.asked:
                continue
            job.asked.add(pid)
            number = job.signal
            if _handles(pid, number) is None:
                number = signal.SIGTERM  # a shell's background processes ignore SIGINT
            with contextlib.suppress(ProcessLookupError):
                if not job.group or os.getpgid(pid) != job.pid or number != job.signal:
                    _kill(pid, number)

    def orphans(self) -> list[int]:
        """This holder's own children that are no job's first process."""
        firsts = {job.pid for job in self.jobs.values() if job.code is None}
        return [pid for pid in children(os.getpid()) if pid not in firsts]

    def rest(self, job: Job) -> list[int]:
        """What is left of a job whose first process has ended: orphans are this holder's own children now."""
        return [pid for pid in self.orphans() if pid not in self.kept and self.owner(pid) is job]

    def find_kept(self) -> None:
        """Take note of what jobs with `keep` have left."""
        if not self.past:
            return
        for pid in self.orphans():
            if pid in self.kept:
                continue
            leaving = self.past.get(_job_of(pid))
            if leaving is not None:
                self.kept[pid] = leaving
            if leaving:
                _kill(pid, signal.SIGTERM)
                self.kill_kept_at = self.kill_kept_at or time.monotonic() + ORPHANED_GRACE

    def owner(self, orphan: int) -> Job | None:
        """Whose descendant it was, by the variable that its environment began with; None: what is kept."""
        name = _job_of(orphan)
        if name in self.past:
            return None
        main = next((job for job in self.jobs.values() if job.main), next(iter(self.jobs.values())))
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
        if self.kill_kept_at is not None and now >= self.kill_kept_at:
            leaving = [pid for pid, leaves in self.kept.items() if leaves]
            for pid in tree(leaving):
                _kill(pid, signal.SIGKILL)
            # Their children fall to this holder one by one.
            self.kill_kept_at = now + LAST_WORD / 10 if leaving else None

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
                try:
                    pid = os.fork()
                except OSError as error:  # no more processes, or no memory: this service has no holder
                    with socket.socket(fileno=fds[0]) as refused, contextlib.suppress(OSError):
                        send(refused, {"ev": "unheld", "errno": error.errno})
                    continue
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
        """Take note of holders that have ended; end what one that was killed has left.

        Looked for each time: what forks while it is found and killed leaves a child that was not seen, and that
        falls to this process as its parent ends.
        """
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self.holders.discard(ended[0])
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

"""Errors of the operating system, put into words: what, where, and what to do next.

For what no command has said better. Where a command knows more (which target, what goes on without it), it raises a
DevloopError of its own.
"""

from __future__ import annotations

import errno
import os
import resource
import sys

from devloop.errors import DevloopError

_HINTS = {
    errno.ENOSPC: "make room on that disk, then try again",
    errno.EDQUOT: "your quota is used up: make room, then try again",
    errno.EROFS: "it is on a disk that can't be written to; DEVLOOP_STATE_DIR moves what devloop keeps",
    errno.EACCES: "see to its owner and mode: ls -ld; who started devloop with sudo once may have to chown .devloop",
    errno.EPERM: "see to its owner and mode: ls -ld; who started devloop with sudo once may have to chown .devloop",
    errno.ENFILE: "the machine has as many open files as it may: sysctl fs.file-max",
    errno.EAGAIN: "this user may have no more processes and threads: end some, or raise the limit, ulimit -u",
    errno.ENOMEM: "the machine is out of memory: end something",
    errno.ENAMETOOLONG: "a name or path is too long for this file system",
    errno.EIO: "the disk or terminal has failed; dmesg may tell more",
    errno.ENOENT: "it was there a moment ago, or the folder was removed",
    errno.ELOOP: "its links lead in a circle",
    errno.ESTALE: "the network file system has lost it: mount it again",
}

THE_MACHINES = frozenset(_HINTS) - {errno.ENOENT, errno.EAGAIN}
"""Errors that say something of the machine, and nothing of devloop."""


_NO_THREAD = "can't start new thread"
"""What Python raises as a RuntimeError where the system gives EAGAIN (pthread_create(3))."""


def is_the_machines(error: object) -> bool:
    """Whether an error says something of the machine, its limits for instance, and nothing of devloop."""
    if isinstance(error, RuntimeError):
        return str(error) == _NO_THREAD
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in THE_MACHINES)


def explained(error: BaseException) -> DevloopError:
    """The same as an error for the user."""
    if isinstance(error, MemoryError):
        return DevloopError("out of memory", hint=_HINTS[errno.ENOMEM])
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return DevloopError("no thread can be started", hint=_HINTS[errno.EAGAIN])
    if isinstance(error, RecursionError):
        return DevloopError("something is nested too deeply to be read", hint="look for an endless row of brackets")
    assert isinstance(error, OSError)
    what = error.strerror or str(error) or type(error).__name__
    name = error.filename
    where: str | None = None
    if name is not None:
        where = str(name) if isinstance(name, int) else os.fsdecode(name)
    elif not _writable():
        return DevloopError(f"can't write to standard output: {what[:1].lower()}{what[1:]}")
    else:
        what = f"the system refused: {what}"
    hint = more_open_files() if error.errno == errno.EMFILE else _HINTS.get(error.errno or 0)
    return DevloopError(what[:1].lower() + what[1:], where=where, hint=hint)


def more_open_files(wanted: int = 4096) -> str:
    """How this user gets more open files: by themselves up to the hard limit, above it by an administrator."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        return f"raise the limit of open files: ulimit -n {wanted}"
    return f"{hard} is the hard limit: an administrator raises it (nofile in /etc/security/limits.conf) to {wanted}"


def _writable() -> bool:
    """Whether standard output takes anything: what it holds, or nothing at all, which /dev/full refuses too."""
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"")
    except (OSError, ValueError):
        return False
    return True


def contained(problem: BaseException, what: str) -> DevloopError:
    """Any exception of one service's as an error for the user, so that it stops nothing else.

    One that is a fault in devloop goes to the event loop's exception handler, in full. `what` says what failed, as in
    "api can't be opened". A group of one is that one.
    """
    while isinstance(problem, BaseExceptionGroup):
        problem = next((each for each in problem.exceptions if not _is_told(each)), problem.exceptions[0])
    if isinstance(problem, DevloopError):
        return problem
    if isinstance(problem, OSError) and not problem.filename:
        return DevloopError(f"{what}: {problem.strerror or problem or type(problem).__name__}")
    if isinstance(problem, OSError) or is_the_machines(problem):
        return explained(problem)
    import asyncio

    asyncio.get_running_loop().call_exception_handler({"message": what, "exception": problem})
    return DevloopError(
        f"{what}, by a fault in devloop itself: {type(problem).__name__}: {problem}",
        hint="please report it; the engine's log has more",
    )


def _is_told(problem: BaseException) -> bool:
    return isinstance(problem, DevloopError | OSError)

"""Going into a service's namespace from outside: what `devloop exec` does with the command that it runs there.

Standard library only; the process that enters must have one thread (setns(2)), so a child does it before its exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000  # sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_KINDS = (("user", _CLONE_NEWUSER), ("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS))


def enter(pid: int) -> None:
    """Move this process into the user, network and mount namespaces of another one of this user's.

    Raises OSError; ProcessLookupError if that process is gone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptors: list[tuple[int, int]] = []
    try:
        for name, flag in _KINDS:
            if Path(f"/proc/{pid}/ns/{name}").samefile(f"/proc/self/ns/{name}"):
                continue  # root's namespaces need no user namespace; entering one's own is refused
            descriptors.append((os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), flag))
        for descriptor, flag in descriptors:
            if libc.setns(descriptor, flag):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    finally:
        for descriptor, _ in descriptors:
            os.close(descriptor)


def end_with_parent() -> None:
    """This process is killed when its parent ends, however that ends. After `enter`: a process that changes its
    credentials loses it (prctl(2)).
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

"""Who holds a port."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from devloop import presence, state

if TYPE_CHECKING:
    import psutil


def taken(port: int) -> bool:
    """Whether something listens on this port of the loopback, or of every address.

    A bind without a listen tells, in microseconds and without a connection that the other side would see.
    """
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            # No IPv6 here, or a port below 1024: the service itself will say so.
    return False


def holder_of(port: int) -> tuple[str, str]:
    """(who listens on it, what to do), for a person."""
    import psutil

    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        connections = []
    pids = {c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port}
    for pid in sorted(pid for pid in pids if pid):
        try:
            process = psutil.Process(pid)
            command = " ".join(process.cmdline())[:60] or process.name()
            ours = _of_devloop(process)
        except psutil.Error:
            continue
        if ours is not None:
            return ours
        return f"{process.name()} (pid {pid}: {command})", f"end it with `kill {pid}`, or change the port"
    return (
        "a process that this user may not see",
        f"find it with `sudo ss -ltnp 'sport = :{port}'`, or change the port",
    )


def _of_devloop(process: psutil.Process) -> tuple[str, str] | None:
    """The same of a process that is devloop's: to end it by hand would end more than the port's use. psutil.Error."""
    if process.pid == os.getpid():
        return "devloop itself", "change the port"
    lock = presence.open_file_of(process.pid, state.LOCK)
    if lock is not None:
        _, file = state.noted(lock.parent)
        where = f"-f {file} " if file is not None else ""
        return (
            f"devloop for {file.parent if file is not None else lock.parent} (pid {process.pid})",
            f"`devloop {where}down` ends that project, or change the port",
        )
    environ = process.environ()
    project, service = environ.get("DEVLOOP_PROJECT", ""), environ.get("DEVLOOP_SERVICE", "")
    if project and service:
        return (
            f"{service} of devloop's project {project} (pid {process.pid})",
            f"`devloop toggle {service} off` there, or change the port",
        )
    return None

"""Who holds a port."""

from __future__ import annotations

import errno
import socket


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
        except psutil.Error:
            continue
        return f"{process.name()} (pid {pid}: {command})", f"end it with `kill {pid}`, or change the port"
    return (
        "a process that this user may not see",
        f"find it with `sudo ss -ltnp 'sport = :{port}'`, or change the port",
    )

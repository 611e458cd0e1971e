"""How much of a connection's may wait in this kernel before it is sent.

A link carries bulk and what is urgent by one TCP connection, in order. The kernel would take megabytes of an upload for
a slow line, and every other word stands behind them for seconds. What is not sent is better kept by this process, which
lets bulk wait and writes the rest first.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
from typing import Any

UNSENT_BYTES = 128 * 1024
"""It covers a millisecond of this process' own at 1 Gbit/s. What is sent and not acknowledged yet is not in it."""
_NOTSENT_LOWAT = 25  # TCP_NOTSENT_LOWAT, linux/tcp.h; Python's `socket` has it from 3.12 on


def bound_unsent(sock: Any) -> None:
    """Let no more than `UNSENT_BYTES` wait in the kernel. `sock`: a transport's; None or another kind is left alone."""
    if sys.platform == "linux" and sock is not None:
        with contextlib.suppress(OSError):  # no TCP: the sandbox' unix socket, a ProxyCommand's pipe
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)


def unacknowledged(transport: Any) -> int:
    """Bytes that were written to a transport and that its other end's kernel has not taken, as far as that is known."""
    size = getattr(transport, "get_write_buffer_size", None)
    waiting = int(size()) if size is not None else 0
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sys.platform == "linux" and sock is not None:
        with contextlib.suppress(OSError, ValueError):  # it is closed, or has no such queue
            found = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
            waiting += int(struct.unpack("=i", found)[0])
    return waiting

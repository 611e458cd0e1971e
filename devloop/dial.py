"""Connecting to an address, with no thread.

uvloop's `sock_connect` has a resolver's thread look at every address first. That costs 0.1 ms; and there are four such
threads, so that a few names which no resolver answers would hold up every connection for seconds.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any


async def connect(host: str, port: int) -> socket.socket:
    """A socket that does not block and is connected to an address. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await dial(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def dial(sock: socket.socket, address: Any) -> None:
    """Connect a socket that does not block to `address`, in which no name may stand. Raises OSError."""
    try:
        sock.connect(address)
    except BlockingIOError:
        pass
    else:
        return
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()
    number = sock.fileno()
    loop.add_writer(number, _done, writable)
    try:
        await writable
    finally:
        loop.remove_writer(number)
    if problem := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(problem, f"Connect call failed {address}")


def _done(writable: asyncio.Future[None]) -> None:
    if not writable.done():
        writable.set_result(None)

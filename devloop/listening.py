"""Servers of asyncio's streams, and how one ends."""

from __future__ import annotations

import asyncio


async def stop_listening(server: asyncio.Server) -> None:
    """Close a server, as `Server.close` does, and leak no connection that was just accepted.

    Between accept(2) and its transport lies a step of the event loop. In a server that is closed in between, the
    connection gets half a transport, which nobody closes (python/cpython#109564).
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    await asyncio.sleep(0)
    server.close()

"""Whether the agent can connect to the original pods: a NetworkPolicy may keep it out, and drops what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .addresses import host_port

CONNECT_SECONDS = 1.0
TRIES = 3
"""A policy that admits this pod may take a moment to be in force where it has just been made."""
PROBED = 4
"""Endpoints of each port that are tried."""


async def unreached(ports: Iterable[Iterable[tuple[str, int]]]) -> list[str]:
    """The endpoints (host:port) of those ports of which none can be connected to; `ports` has each one's endpoints.

    A refused connection is an answer: a packet has come back, so it is no policy's doing.
    """
    found = await asyncio.gather(*(_port(tuple(endpoints)[:PROBED]) for endpoints in ports))
    return sorted({host_port(host, port) for several in found for host, port in several})


async def _port(endpoints: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    for _ in range(TRIES):
        if not endpoints or any(await asyncio.gather(*(reached(*each) for each in endpoints))):
            return ()
    return endpoints


async def reached(host: str, port: int) -> bool:
    """Whether this pod can connect there: a packet comes back within a second."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True

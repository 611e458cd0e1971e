"""Ports on the loopback that are for this user alone. Every listener of devloop's on this machine is made here.

Everybody on the machine reaches the loopback, and so does every web page in this user's browser. Connections of other
users are broken; where names are given, requests of pages from elsewhere are refused (`devloop.net.rebinding`).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from devloop.errors import ServiceError
from devloop.net.peers import user_of, works_here
from devloop.net.rebinding import Guard, Names
from devloop.places import mine, user_name
from devloop.relay import Relay, Relays, Target


def own_relays(
    route: Callable[[Relay], Awaitable[Target]],
    failed: Callable[[Relay, Exception], None],
    *,
    names: Names | None = None,
    spared: Callable[[Target], bool] | None = None,
) -> Relays:
    """What relays from such a port. See `Relays`; `names` are those that its HTTP requests may be for, None: any."""

    async def route_own(relay: Relay) -> Target:
        refuse_strangers(relay)
        return await route(relay)

    return Relays(route_own, failed, guard=None if names is None else lambda: Guard(names), spared=spared)


def refuse_strangers(relay: Relay) -> None:
    """Raises ServiceError if another user of this machine has connected."""
    transport = relay.client.transport
    client, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    uid = user_of(client[:2], own[:2]) if client and own else None
    if uid is not None and uid not in mine() and not (os.geteuid() == 0 and works_here(uid)):
        raise ServiceError(f"{user_name(uid)} has connected to it, and may not: this port is for its user alone")

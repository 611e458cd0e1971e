"""Commands that tell the engine to do something: down, toggle, restart."""

from __future__ import annotations

import argparse
import asyncio

from devloop.commands.common import state_folder
from devloop.control import client
from devloop.errors import EngineError
from devloop.protocol import StopProgress


def toggle(args: argparse.Namespace) -> int:
    """`devloop toggle`."""
    answer = client.call(state_folder(args).socket, "toggle", service=args.service, mode=args.mode)
    print(f"{args.service} is {answer['mode']} now")
    return 0


def restart(args: argparse.Namespace) -> int:
    """`devloop restart`."""
    method = "build" if args.build else "restart"
    client.call(state_folder(args).socket, method, services=args.services)
    return 0


def down(args: argparse.Namespace) -> int:
    """`devloop down`: returns when all has ended, and says who is still alive meanwhile."""
    return asyncio.run(_down(args))


async def _down(args: argparse.Namespace) -> int:
    state = state_folder(args)
    try:
        connection = await client.ControlClient.connect(state.socket)
    except EngineError:
        print("nothing runs")
        return 0
    survivors: dict[str, tuple[str, ...]] = {}
    told: tuple[str, ...] = ()
    async with connection:
        await connection.subscribe()
        await connection.call("shutdown")
        async for event in connection.events():
            if isinstance(event, StopProgress):
                survivors = event.survivors
                if event.alive and event.alive != told:
                    told = event.alive
                    print(f"waiting for {', '.join(event.alive)}", flush=True)
    # The engine hangs up just before it ends; `devloop up` right after `down` must find its lock free.
    await asyncio.to_thread(state.wait_unlocked)
    for service, processes in survivors.items():
        print(f"{service}: could not be ended: {', '.join(processes)}")
    return 1 if survivors else 0

"""Commands that tell the engine to do something: down, toggle, restart."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import time

from devloop import presence
from devloop.commands.common import engine_socket, socket_of, state_folder
from devloop.control import client
from devloop.errors import EngineError, UnansweredError
from devloop.protocol import StopProgress
from devloop.state import LOCK, StateFolder

_LAST_MOMENT = 5.0
"""Seconds that an engine may take to be gone once it has hung up, or was killed."""
_HOLDERS = 5.0
"""Seconds that holders may take to end what they hold: their grace is 2 s (`devloop.local.holder`)."""


def toggle(args: argparse.Namespace) -> int:
    """`devloop toggle`."""
    answer = client.call(engine_socket(args), "toggle", service=args.service, mode=args.mode)
    print(f"{args.service} is {answer['mode']} now")
    return 0


def restart(args: argparse.Namespace) -> int:
    """`devloop restart`."""
    method = "build" if args.build else "restart"
    client.call(engine_socket(args), method, services=args.services)
    return 0


def down(args: argparse.Namespace) -> int:
    """`devloop down`: returns when all has ended, and says who is still alive meanwhile."""
    state = state_folder(args)
    running = state.engine()
    if running is None:
        left = _clean_up(state)
        print(f"nothing runs{'; removed what an engine that was killed has left' if left else ''}")
        return 0
    if args.force:
        return _kill(state, running.pid)
    pid = running.pid
    if pid is not None and presence.is_stopped(pid):
        # What is to end need not be woken by hand; its holders were suspended with it by a Ctrl-Z.
        print(f"the engine (pid {pid}) was suspended; it goes on, to end", flush=True)
        with contextlib.suppress(OSError):
            os.killpg(os.getpgid(pid), signal.SIGCONT)
    return asyncio.run(_down(state))


def _clean_up(state: StateFolder) -> bool:
    """Remove the files that killed engines have left: secrets in memory, copies of volumes on the disk."""
    from devloop.remote.workload import runfolder

    copies = state.path / "volumes"
    there = copies.is_dir() and not copies.is_symlink() and not state.obstacle
    if there:
        runfolder.remove(copies)
    return bool(runfolder.sweep_all()) or there


async def _down(state: StateFolder) -> int:
    try:
        connection = await client.ControlClient.connect(socket_of(state))
    except UnansweredError:
        raise
    except EngineError:
        if state.wait_unlocked(_LAST_MOMENT):  # it was about to end
            return 0
        raise
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
    state.wait_unlocked()
    for service, processes in survivors.items():
        print(f"{service}: could not be ended: {', '.join(processes)}")
    return 1 if survivors else 0


def _kill(state: StateFolder, pid: int | None) -> int:
    """End an engine that does not answer. Its holders end the services, as whenever an engine is gone."""
    if pid is None:
        hint = f"find its process with: fuser -v {state.path / LOCK}"
        raise EngineError("the engine's process can't be found out", where=str(state.path), hint=hint)
    from devloop.local import sweep

    run = sweep.noted(state.processes)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        hint = f"as root: kill -9 {pid}"
        raise EngineError(f"the engine (pid {pid}) is another user's", where=str(state.path), hint=hint) from None
    if not state.wait_unlocked(_LAST_MOMENT):
        hint = "it may wait for a disk or a device; only that, or a restart of the machine, ends it"
        raise EngineError(f"the engine (pid {pid}) does not end, even killed", where=str(state.path), hint=hint)
    until = time.monotonic() + _HOLDERS
    while run is not None and sweep.left(run) and time.monotonic() < until:
        time.sleep(0.05)
    swept = sweep.sweep(state.processes)
    sweep.forget(state.processes)
    more = f", and {swept} processes that were left" if swept else ""
    print(f"the engine (pid {pid}) and its services were ended{more}")
    return 0

"""Connections that clients had before a Service was attached: counted by client, said, and moved where that may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import ALL, AttachError, Phase
from devloop.attach.attachment import Attachment
from devloop.attach.moving import Moved

from . import kit
from .attaching import PORT, SERVICE, Engine, Here, Load, ask, client_pod, engine, run_service
from .conftest import Namespace
from .kit import ApiClient

pytestmark = pytest.mark.role("attach")

FOR_GOOD = 10**9
"""Requests on one connection."""
HOLD = """
import signal, socket, sys
kept = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(int(sys.argv[3]))]
for each in kept:
    assert each.recv(100).startswith(b"hello from")
print("there", flush=True)
signal.pause()
"""


@asynccontextmanager
async def prepared(admin: ApiClient, space: Namespace, folder: Path) -> AsyncIterator[tuple[Engine, Here]]:
    """Two original pods, a pod to ask from, a developer and a local service."""

    async def run(pod: str, container: str, command: Sequence[str]) -> bytes:
        return (await kit.execute(space.developer, space.name, pod, *command)).stdout.encode()

    await asyncio.gather(run_service(admin, space.name), client_pod(admin, space.name))
    async with Here() as here, engine(space.developer, folder, "ada", run=run) as ada:
        yield ada, here


async def seen(found: Attachment, wanted: Any) -> None:
    async def now() -> Any:
        found.look_again.set()
        await asyncio.sleep(0.3)
        return found.earlier

    await kit.eventually(now, wanted)


def load(space: Namespace, **plan: Any) -> Load:
    """POSTs, which no client repeats."""
    more = {"requests_per_connection": FOR_GOOD, "method": "POST", "body": 100, **plan}
    return Load(space, **more)


async def started(space: Namespace, number: int, port: int = PORT) -> None:
    """So many connections lead from the client to the Service."""

    async def there() -> int:
        ran = await kit.execute(space.developer, space.name, "client", "cat", "/proc/net/tcp")
        lines = [line.split() for line in ran.stdout.splitlines()[1:]]
        return sum(fields[3] == "01" and fields[2].endswith(f":{port:04X}") for fields in lines)

    await kit.eventually(there, number)


async def test_they_are_counted_by_client_and_stay_where_no_net_admin_is_allowed(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    async with prepared(admin, namespace, tmp_path) as (ada, here):
        kept = load(namespace, connections=3, rate=30)
        await started(namespace, 3)
        found = await ada.attachments.attach(ada.wanted(here, routes=(ALL,)), here)
        await asyncio.wait_for(found.looked.wait(), 20)
        assert found.earlier == (("client", 3),)
        assert found.uncounted == ""
        assert await ask(namespace) == "here"  # a new connection
        with pytest.raises(AttachError, match="allows no NET_ADMIN in a pod"):
            await ada.attachments.move(found)
        assert found.state.phase is Phase.ATTACHED
        told = await kept.stop()
        assert told["failed"] == 0
        assert set(told["counts"]) == {each for each in told["counts"] if each.startswith("api-")}
        await seen(found, ())
        await ada.attachments.leave(found)


async def test_how_many_requests_per_second_go_past_is_told(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    """By the kernel's counts, which a command in the original's pods reads."""
    await told_and_idle(admin, namespace, tmp_path, "service")


async def test_how_many_requests_per_second_go_past_a_door_is_told(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    await told_and_idle(admin, open_namespace, tmp_path, "pods")


async def told_and_idle(admin: ApiClient, space: Namespace, tmp_path: Path, way: str) -> None:
    """Two connections are asked 20 requests a second, and one lies idle; then that one alone is left."""
    async with prepared(admin, space, tmp_path) as (ada, here):
        kept = load(space, connections=2, rate=20)
        await started(space, 2)
        command = ("timeout", "100", "python3", "-c", HOLD, SERVICE, str(PORT + 1), "1")
        hold = asyncio.create_task(kit.execute(space.developer, space.name, "client", *command))
        try:
            await started(space, 1, PORT + 1)
            ports = {PORT: here.port, PORT + 1: here.tcp_port}
            found = await ada.attachments.attach(ada.wanted(here, routes=(ALL,), ports=ports, way=way), here)

            async def known() -> bool:
                return bool(found.earlier_rate)

            await kit.eventually(known, True)
            print(f"\n{way}: {found.earlier}, {found.earlier_rate} requests/s of 20")
            assert found.earlier == (("client", 3),)
            assert found.earlier_rate is not None and 10 < found.earlier_rate < 26
            told = await kept.stop()
            assert told["failed"] == 0
            await seen(found, (("client", 1),))

            async def rate() -> float | None:
                found.look_again.set()
                return found.earlier_rate

            await kit.eventually(rate, 0.0)
        finally:
            hold.cancel()
            await asyncio.gather(hold, return_exceptions=True)
        await ada.attachments.leave(found)


async def test_they_move_between_two_requests_and_none_fails(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    """Quick and slow answers, and connections that lie idle; a plain TCP one stays, until it is forced."""
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        quick = load(space, connections=4, rate=12)
        slow = load(space, connections=2, path="/slow?s=25", timeout=60)
        await started(space, 6)
        ports = {PORT: here.port, PORT + 1: here.tcp_port}
        command = ("timeout", "60", "python3", "-c", HOLD, SERVICE, str(PORT + 1), "1")
        hold = asyncio.create_task(kit.execute(space.developer, space.name, "client", *command))
        await started(space, 1, PORT + 1)
        found = await ada.attachments.attach(ada.wanted(here, routes=(ALL,), ports=ports), here)
        await asyncio.wait_for(found.looked.wait(), 20)
        assert found.earlier == (("client", 7),)
        moved = await ada.attachments.move(found)
        # The slow ones are asked, and not answered yet, all the time.
        assert (moved.ended, moved.left) == (4, (("client", 3),))
        tolds = await asyncio.gather(quick.stop(), slow.stop())
        assert tolds[0]["counts"].get("here", 0) > 0
        assert tolds[1]["failed"] == 0
        # A reset is read at the next request at the latest, and a request that was not written can't fail.
        assert tolds[0]["failed"] == 0
        await seen(found, (("client", 1),))
        assert await ada.attachments.move(found, force=True) == Moved(1)
        await seen(found, ())
        hold.cancel()
        await asyncio.gather(hold, return_exceptions=True)
        await ada.attachments.leave(found)

"""What Envoy works by and what the agent takes it for are the same, however a change of it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.agent import envoy, gateway
from devloop.agent.attachments import Attachments
from devloop.agent.gateway import Gateway, GatewayError, RejectedError
from devloop.agent.plan import Local, PortPlan, ServicePlan
from devloop.agent.spec import Header, Match, Route, Spec


def files(folder: Path, *users: str, tag: str = "tag") -> dict[str, str]:
    specs = [
        Spec(
            f"api-{each}",
            each,
            "h",
            "intercept",
            "now",
            "api",
            {80: 8080},
            routes=(Route((Header("x-user", Match("exact", each)),)),),
            fail="closed",
            way="pods",
        )
        for each in users
    ]
    port = PortPlan(80, 30000, "http", (("10.0.0.7", 8080),))
    plans = [ServicePlan("api", (port,), tuple(Local(each, True) for each in specs), pod=tag)] if users else []
    return envoy.files(plans, str(folder))


def on_disk(folder: Path) -> dict[str, str]:
    return {
        str(each.relative_to(folder)): each.read_text()
        for each in folder.rglob("*.json")
        if each.name != "bootstrap.json"
    }


def routed(found: dict[str, str]) -> dict[str, str]:
    """Without the list of clusters, whose last change nobody waits for: one that nothing leads to is of no account."""
    return {name: text for name, text in found.items() if name != "cds.json"}


class Envoy:
    """It reads its files whenever it is asked how it is, unless it hangs: `fails` says how an answer ends then."""

    def __init__(self, folder: Path, found: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.works_by: dict[str, str] = {}
        self.fails: Callable[[], Any] | None = None
        self.after = 0
        """So many answers before."""
        for each in ("eds", "rds"):
            (folder / each).mkdir()
        found._files = files(folder)
        for name, text in found._files.items():
            found._write(name, text)

        async def started() -> None:
            pass

        monkeypatch.setattr(found, "start", started)
        monkeypatch.setattr(found, "_stats", self.stats)

    async def stats(self) -> dict[str, str]:
        if self.fails is not None:
            self.after -= 1
            if self.after < 0:
                # It has read what there is, and does not say so.
                self.works_by = on_disk(self.folder)
                await self.fails()
        self.works_by = on_disk(self.folder)
        out: dict[str, str] = {}
        for name, text in self.works_by.items():
            key = {"cds.json": "cluster_manager.cds", "lds.json": "listener_manager.lds"}.get(name)
            if name.startswith("rds/"):
                key = f"x.rds.{name[4:-5]}"
            if key is not None:
                out[f"{key}.version_text"] = envoy.version(text)
        return out


async def late() -> None:
    raise TimeoutError


async def never() -> None:
    await asyncio.Event().wait()


async def broken() -> None:
    raise OSError("no space left on device")


async def refused() -> None:
    raise RejectedError("Envoy refuses")


@pytest.mark.slow
@pytest.mark.parametrize("answers", [1, 2])
@pytest.mark.parametrize("how", [late, never, broken, refused])
async def test_a_change_that_was_not_finished_is_taken_back_whole(
    how: Callable[[], Any], answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Gateway(tmp_path, "envoy", lambda _: None)
    there = Envoy(tmp_path, found, monkeypatch)
    before = files(tmp_path, "ben")
    await found.apply(before)
    assert on_disk(tmp_path) == before
    there.fails, there.after = how, answers
    # In the pod that ben has, and in one that is new: files that were changed, and files that were not there.
    both = envoy.files([], str(tmp_path)) | files(tmp_path, "ben", "ada") | {"eds/new.json": "{}"}
    changing = asyncio.create_task(found.apply(both))
    async with asyncio.timeout(5):
        while there.after >= 0:  # noqa: ASYNC110 (it polls, too)
            await asyncio.sleep(0)
    assert there.after < 0
    changing.cancel()
    with pytest.raises((asyncio.CancelledError, OSError, GatewayError)):
        await changing
    assert on_disk(tmp_path) == before
    there.fails = None
    await found.apply(before)  # as the agent does, now that ada was refused: Envoy is asked whether it is so
    assert routed(there.works_by) == routed(before)
    await found.apply(both)
    assert on_disk(tmp_path) == both


async def test_a_disk_that_was_full_while_it_was_taken_back_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Gateway(tmp_path, "envoy", lambda _: None)
    there = Envoy(tmp_path, found, monkeypatch)
    before = files(tmp_path, "ben")
    await found.apply(before)
    real = found._write
    full = False

    def write(name: str, text: str) -> None:
        if full:
            raise OSError("no space left on device")
        real(name, text)

    async def fills() -> None:
        nonlocal full
        full = True
        raise TimeoutError

    monkeypatch.setattr(found, "_write", write)
    there.fails, there.after = fills, 2
    with pytest.raises(TimeoutError):
        await found.apply(files(tmp_path, "ben", "ada"))
    assert on_disk(tmp_path) != before
    there.fails, full = None, False
    await found.apply(before)
    assert on_disk(tmp_path) == before and routed(there.works_by) == routed(before)


@pytest.mark.parametrize("problem", [TimeoutError(), ConnectionRefusedError()])
async def test_an_envoy_that_does_not_answer_is_asked_no_longer_than_it_may_take(
    problem: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that is said to run, and takes no connection."""
    found = Gateway(tmp_path, "envoy", lambda _: None)
    found._started.set()
    asked = 0

    async def admin(*_: str) -> str:
        nonlocal asked
        asked += 1
        raise problem

    monkeypatch.setattr(found, "_admin", admin)
    monkeypatch.setattr(gateway, "TAKEN_SECONDS", 0.05)
    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            await found._stats()
    assert asked == 1 or isinstance(problem, ConnectionRefusedError)


async def test_an_envoy_that_is_being_started_anew_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Gateway(tmp_path, "envoy", lambda _: None)
    answers: list[OSError | str] = [ConnectionRefusedError(), ConnectionResetError(), 'a: "1"\nb: 2\n']

    async def admin(*_: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            asyncio.get_running_loop().call_soon(found._started.set)
            raise answer
        return answer

    monkeypatch.setattr(found, "_admin", admin)
    assert await found._stats() == {"a": "1", "b": "2"}


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n"])
async def test_its_interface_has_an_end_and_half_an_answer_is_none(
    says: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(says)
        if not says:
            await reader.read()
        writer.close()
        await writer.wait_closed()
        over.set()

    over = asyncio.Event()
    monkeypatch.setattr(gateway, "ADMIN_SECONDS", 0.05)
    server = await asyncio.start_unix_server(serve, tmp_path / "admin.sock")
    try:
        with pytest.raises(OSError, match="half" if says else None):
            await Gateway(tmp_path, "envoy", lambda _: None)._admin("/stats")
        await over.wait()
    finally:
        server.close()


@pytest.mark.parametrize("how", [late, never, broken])
async def test_what_was_not_finished_leaves_nothing_behind_and_is_done_again(
    how: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Attachments(None, tmp_path, "envoy")
    before = {"web": ServicePlan("web", ())}
    made._last = dict(before)
    made._view = cast(Any, SimpleNamespace(services={}))
    made._gateway._running = cast(Any, object())
    monkeypatch.setattr(made._gateway, "apply", lambda _: how())
    applying = asyncio.create_task(made.apply())
    for _ in range(5):
        await asyncio.sleep(0)
    applying.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await applying
    assert made._last == before and not made._leaving and made._dirty.is_set()
    assert not made._applying.locked()


def test_the_files_of_one_who_comes_are_more(tmp_path: Path) -> None:
    """What the tests above rest on."""
    one, two = files(tmp_path, "ben"), files(tmp_path, "ben", "ada")
    assert two.keys() > one.keys() and json.loads(two["cds.json"]) != json.loads(one["cds.json"])

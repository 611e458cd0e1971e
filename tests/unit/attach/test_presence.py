"""An agent that nobody uses removes itself, whatever comes in between."""

from __future__ import annotations

import asyncio
import io
import urllib.request
from http.client import BadStatusLine, IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.agent.presence import ClusterApi, Presence


@pytest.mark.parametrize(
    "problem", [OSError("away"), ValueError("no JSON"), IncompleteRead(b""), BadStatusLine("x"), TypeError("a fault")]
)
@pytest.mark.parametrize("where", ["call", "joining"])
async def test_a_removal_that_fails_is_tried_again(problem: Exception, where: str) -> None:
    outcomes: list[Exception | None] = [problem, None]
    removed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def outcome() -> None:
        if (found := outcomes.pop(0)) is not None:
            raise found

    def call(method: str, path: str) -> None:
        if where == "call":
            outcome()
        loop.call_soon_threadsafe(removed.set)

    async def joining() -> bool:
        if where == "joining":
            outcome()
        return False

    found = Presence(cast(Any, SimpleNamespace(namespace="space", call=call)), 0.001)
    found.joining = joining
    async with asyncio.timeout(5):
        await removed.wait()
    found.close()


class Cut(io.BytesIO):
    def read(self, *_: Any) -> bytes:
        raise IncompleteRead(b"{")

    def readline(self, *_: Any) -> bytes:
        raise IncompleteRead(b"{")


def test_half_an_answer_is_an_oserror_as_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("namespace", "token"):
        (tmp_path / name).write_text("x")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    api = ClusterApi(tmp_path)
    api._context = cast(Any, object())
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Cut())
    with pytest.raises(OSError, match="IncompleteRead"):
        api.call("GET", "/")
    with pytest.raises(OSError, match="IncompleteRead"):
        list(api.lines("/", 1))

    def nothing(*_: object, **__: object) -> None:
        raise BadStatusLine("")

    monkeypatch.setattr(urllib.request, "urlopen", nothing)
    with pytest.raises(OSError, match="BadStatusLine"):
        api.call("GET", "/")

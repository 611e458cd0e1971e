"""Lists of what git ignores that change while files are watched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from devloop.local.watch.scope import WatchSpec
from devloop.local.watch.source import Kind
from devloop.local.watch.survey import Finding
from devloop.local.watch.watcher import Watcher


async def test_many_lists_at_once_are_one_look_at_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher(tmp_path, lambda *_: None, lambda *_: None)
    await watcher.watch([WatchSpec("api", tmp_path, (tmp_path,))])
    looks = 0
    looked = asyncio.Event()
    survey = watcher._survey_all

    def counted() -> Iterator[Finding | None]:
        nonlocal looks
        looks += 1
        yield from survey()
        looked.set()

    monkeypatch.setattr(watcher, "_survey_all", counted)
    watcher._deliver([(Kind.PLACED, f"{tmp_path}/{n}/.gitignore") for n in range(100)])
    async with asyncio.timeout(10):
        await looked.wait()
        while watcher.busy:  # noqa: ASYNC110 - nothing tells that it has come to rest
            await asyncio.sleep(0)
    assert looks == 1
    await watcher.close()

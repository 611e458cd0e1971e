"""`devloop requests --follow`, at a real control socket."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devloop.commands.attach import RequestPrinter, _follow
from devloop.protocol import RequestBatch, RequestRecord
from devloop.testing import shop


class Printer(RequestPrinter):
    """Keeps what would be printed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[RequestRecord] = []
        self.news = asyncio.Condition()

    def print(self, found: Iterable[RequestRecord]) -> None:
        self.seen += found
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self.news:
            self.news.notify_all()

    async def until(self, number: int) -> None:
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(lambda: len(self.seen) >= number)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the path of a Unix socket has at most some hundred bytes."""
    path = Path(tempfile.mkdtemp(prefix="dl-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def test_what_was_and_what_comes_each_once_and_only_of_that_service(folder: Path) -> None:
    fake = shop.engine(shop.fixed_clock)
    before = fake.requests["web"][-2:]
    new = replace(before[0], path="/new")
    answer = fake.call

    async def call(method: str, params: Any) -> dict[str, Any]:
        found = await answer(method, params)
        if method == "requests":  # the last one is on its way as an event when the answer goes
            fake._publish(RequestBatch((before[-1], replace(new, service="api"))))
        return found

    fake.call = call  # type: ignore[method-assign]
    printer = Printer()
    async with fake.serving(folder / "control.sock"):
        following = asyncio.create_task(_follow(folder / "control.sock", "web", 2, printer))
        await printer.until(2)
        fake.hear(new)
        await printer.until(3)
        fake.hear(new)  # two requests can be alike
        await printer.until(4)
    await following  # the engine has hung up
    assert printer.seen == [*before, new, new]

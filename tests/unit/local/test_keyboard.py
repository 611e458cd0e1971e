"""What is typed reaches a service in its order."""

from __future__ import annotations

import asyncio
import contextlib
import os

from devloop.local.terminal import TYPED, Keyboard


async def test_who_waits_is_not_overtaken() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    keyboard = Keyboard(writing)
    read = bytearray()
    first = b"a" * (2 * 1024 * 1024 + TYPED)  # more than a pipe holds
    await keyboard.type(first)
    waiting = asyncio.create_task(keyboard.type(b"b"))
    await asyncio.sleep(0)
    while len(read) < len(first):
        read += os.read(reading, 1 << 20)
        keyboard._write()  # as the event loop does; before who waits has run, somebody else comes
    await keyboard.type(b"c")
    await waiting
    with contextlib.suppress(BlockingIOError):
        read += os.read(reading, 16)
    assert bytes(read[len(first) :]) == b"bc"
    keyboard.close()
    os.close(reading)

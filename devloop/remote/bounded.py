"""The bytes of an HTTP answer, as far as anybody should send them: who answers may be hostile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp

ANSWER_BYTES = 256 << 20
"""More than any list that the API server gives."""
LINE_BYTES = 16 << 20
"""A line of a watch: one object, of which etcd takes 1.5 MiB."""
ERROR_BYTES = 64 << 10
"""What is read of an answer that is an error."""


class TooLongError(ValueError):
    """There was no end to it."""


async def read(response: aiohttp.ClientResponse, limit: int = ANSWER_BYTES) -> bytes:
    """An answer's whole body. TooLongError; aiohttp's own errors."""
    found = bytearray()
    async for part in response.content.iter_any():
        found += part
        if len(found) > limit:
            raise TooLongError("there is no end to the answer")
    return bytes(found)


async def beginning(response: aiohttp.ClientResponse, limit: int = ERROR_BYTES) -> bytes:
    """So much of an answer's body, or all of it if that is less. aiohttp's own errors."""
    found = bytearray()
    async for part in response.content.iter_any():
        found += part[: limit - len(found)]
        if len(found) >= limit:
            break
    return bytes(found)


async def lines(response: aiohttp.ClientResponse, limit: int = LINE_BYTES) -> AsyncIterator[bytes]:
    """Its lines that are whole and not empty, as they come. TooLongError; aiohttp's own errors.

    Not aiohttp's lines: those may have 128 KiB at most, and an object of a watch has more.
    """
    rest = bytearray()
    async for part in response.content.iter_any():
        first, *more = part.split(b"\n")
        rest += first
        if len(rest) > limit:
            raise TooLongError("there is no end to a line of the answer")
        for each in more:
            if rest.strip():
                yield bytes(rest)
            rest = bytearray(each)

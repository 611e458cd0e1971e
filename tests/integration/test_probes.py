"""Checks against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from devloop.config.model import MS, SECOND, Command, ExecCheck, HttpCheck, Probe, TcpCheck
from devloop.local.probes import CheckFailed, check_once, until_dead, until_ready

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: bytes, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Answers everything with these bytes, then hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()

    it = await asyncio.start_server(handle, host, 0)
    async with it:
        yield it.sockets[0].getsockname()[1]


async def no_command(_: ExecCheck, __: float) -> int:
    raise AssertionError


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "302 Found", "399 x"])
async def test_http_passes_from_200_to_399(status: str) -> None:
    async with server(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()) as port:
        await check_once(HttpCheck("127.0.0.1", port), 5, no_command)


async def test_http_passes_over_informational_answers() -> None:
    async with server(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
        await check_once(HttpCheck("127.0.0.1", port), 5, no_command)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", "GET /x answered 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP"),
        (b"", "HTTP|hung up|reset"),
    ],
)
async def test_http_failures_are_told_in_words(answer: bytes, words: str) -> None:
    async with server(answer) as port:
        with pytest.raises(CheckFailed, match=words):
            await check_once(HttpCheck("127.0.0.1", port, "/x"), 5, no_command)


async def test_nothing_listens_and_no_answer() -> None:
    async with server(b"") as port:
        pass
    with pytest.raises(CheckFailed, match=f"nothing listens on localhost:{port}"):
        await check_once(TcpCheck("localhost", port), 5, no_command)

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    it = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with it:
        with pytest.raises(CheckFailed, match=r"no answer within 0\.05 s"):
            await check_once(HttpCheck("127.0.0.1", it.sockets[0].getsockname()[1]), 0.05, no_command)
        for writer in writers:
            writer.close()


async def test_localhost_is_both_loopback_addresses() -> None:
    async with server(b"", "::1") as port:
        await check_once(TcpCheck("localhost", port), 5, no_command)


def probe(check: TcpCheck | ExecCheck, **fields: int) -> Probe:
    defaults = {"period": 5 * MS, "timeout": SECOND, "grace": 0, "failures": 3}
    return Probe(check=check, **(defaults | fields))


EXEC = ExecCheck(Command(("test",), "test"))


async def test_ready_at_the_first_pass_and_late_is_told_once() -> None:
    codes = iter([1, 1, 1, 0])
    late: list[str] = []

    async def command(_: ExecCheck, __: float) -> int:
        return next(codes)

    await until_ready(probe(EXEC), command, late.append)
    assert late == ["`test` exited with 1"]
    assert next(codes, None) is None


async def test_dead_after_so_many_failures_in_a_row() -> None:
    codes = iter([1, 1, 0, 1, 1, 1])

    async def command(_: ExecCheck, __: float) -> int:
        return next(codes)

    assert await until_dead(probe(EXEC), command) == "`test` exited with 1"
    assert next(codes, None) is None


@pytest.mark.parametrize("which", ["ready", "live"])
async def test_nothing_is_asked_while_it_is_held(which: str) -> None:
    """A probe's own request would run into the breakpoint that a person stands at."""
    asked = 0
    left = 20

    async def command(_: ExecCheck, __: float) -> int:
        nonlocal asked
        asked += 1
        return 1 if which == "live" else 0

    def held() -> bool:
        nonlocal left
        left -= 1
        assert asked == 0 or left < 0
        return left >= 0

    if which == "ready":
        await until_ready(probe(EXEC), command, lambda _: pytest.fail("it is not late"), None, lambda _: None, held)
        assert asked == 1
    else:
        await until_dead(probe(EXEC), command, None, held)
        assert asked == 3

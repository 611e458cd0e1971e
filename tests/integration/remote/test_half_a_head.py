"""The way to a local service is lost in the midst of its answer's head, which is no answer to Envoy."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from .envoy_here import HERE, Local, a_rig, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_request_is_given_to_the_original_too_only_if_it_may_be(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    given: list[str] = []
    begun = asyncio.Event()

    async def original(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            given.append("original")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async def local(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            given.append("local")
            writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: a=")
            await writer.drain()
            await begun.wait()

    async with serving(original) as there, serving(local) as here, a_rig(monkeypatch, there, "http") as rig:
        await rig.attach(Local(here))
        reader, writer = await asyncio.open_connection(HERE, rig.proxy.port)
        body = "content-length: 2\r\n\r\nab" if method == "POST" else "\r\n"
        writer.write(f"{method} /pay HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{body}".encode())
        assert rig.agent is not None
        (member,) = rig.agent._members.values()
        async with asyncio.timeout(10):
            while not any(far.turns.begun for each in member.uplinks for far in each._open):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        rig.carrier.abort("a lost network")
        async with asyncio.timeout(10):
            answer = await reader.read()
        status = answer.split()[1]
        assert (status, given) == ((b"502", ["local"]) if method == "POST" else (b"200", ["local", "original"]))
        begun.set()
        writer.close()

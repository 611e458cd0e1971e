"""A connection to the API server that is lost without a word: a NAT, a VPN or a load balancer has forgotten it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from devloop.remote.kubernetes import api as module
from devloop.remote.kubernetes.api import Api, ApiUnreachableError

from .test_credentials import Credentials

NEWS = {"type": "ADDED", "object": {"metadata": {"name": "one"}}}
BOOKMARK = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}


@asynccontextmanager
async def serving(*said: Any, pause: float = 0.0) -> AsyncIterator[tuple[Api, list[dict[str, str]]]]:
    """An API server that says these lines, and then nothing."""
    asked: list[dict[str, str]] = []
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        response = web.StreamResponse()
        await response.prepare(request)
        for each in said:
            await response.write(json.dumps(each).encode() + b"\n")
            await asyncio.sleep(pause)
        await over.wait()
        return response

    app = web.Application()
    app.router.add_get("/things", answer)
    server = TestServer(app)
    await server.start_server()
    credentials = Credentials()
    credentials.host = str(server.make_url("")).rstrip("/")
    api = Api(cast(Any, credentials))
    try:
        yield api, asked
    finally:
        over.set()
        await api.close()
        await server.close()


async def test_a_watch_that_hears_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.SILENCE_SECONDS <= 90
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.05)
    async with serving(NEWS) as (api, asked):
        seen = []
        with pytest.raises(ApiUnreachableError):
            async with asyncio.timeout(10):
                async for _, found in api.watch("/things"):
                    seen.append(found["metadata"]["name"])
        assert seen == ["one"]
        # Not every API server gives bookmarks: it ends the watch before the silence is too long.
        assert int(asked[0]["timeoutSeconds"]) <= 75 and "allowWatchBookmarks" not in asked[0]


@pytest.mark.slow
async def test_a_watch_that_is_given_bookmarks_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the API server is there is no news."""
    monkeypatch.setattr(module, "SILENCE_SECONDS", 1.0)
    async with serving(*[BOOKMARK] * 6, NEWS, pause=0.25) as (api, _):
        async with asyncio.timeout(30):
            assert await anext(api.watch("/things")) == ("ADDED", NEWS["object"])


async def test_a_log_may_be_silent_and_its_connection_is_asked_by_the_kernel() -> None:
    async with serving(NEWS) as (api, _):
        stream = api.stream("/things")
        async with asyncio.timeout(10):
            await anext(stream)
        assert api._client is not None
        [response] = api._client._answers
        assert response.connection is not None and response.connection.transport is not None
        raw = response.connection.transport.get_extra_info("socket")
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, between, count = (raw.getsockopt(socket.IPPROTO_TCP, each) for each in options)
        assert idle + between * count <= 90

"""Credentials are refused or renewed while the link, and watches, run through the session that had the old ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from devloop.remote.kubernetes.api import Api, ApiError
from devloop.remote.kubernetes.kubeconfig import Kubeconfig, Lasting
from devloop.remote.kubernetes.podport import PROTOCOL, PodTransport
from devloop.remote.workload import references as kinds
from devloop.remote.workload.kube import KubeCluster


class Credentials:
    """A kubeconfig whose plugin gives another token, or another certificate, each time that it is asked anew."""

    where = "here/shop"

    def __init__(self, user: str = "exec", certificates: bool = False) -> None:
        self.chosen = SimpleNamespace(namespace="shop", user={user: {}}, cluster={"server": "http://here"})
        self.host = ""
        self.old = False
        self.certificates = certificates
        self.asked = 0
        self._good = False

    def stale(self) -> bool:
        return self.old

    def forget(self) -> None:
        self._good = False

    async def configuration(self) -> Any:
        from kubernetes.aio import client

        if not self._good or self.old:
            await asyncio.sleep(0)
            self.asked += 1
            self._good, self.old = True, False
        settings: Any = client.Configuration()
        settings.host = self.host
        settings.api_key = {"BearerToken": f"Bearer {self.asked}"}
        if self.certificates:
            # Made no connection with: what tells one session from another is the path.
            settings.cert_file, settings.key_file = None, f"/proc/self/fd/{self.asked}"
        return settings


class Far:
    """An API server that takes the tokens from `least` on."""

    def __init__(self) -> None:
        self.url = ""
        self.least = 1
        self.renewed = asyncio.Event()
        """Watches go on."""
        self.tokens: list[int] = []

    async def serve(self) -> TestServer:
        app = web.Application()
        app.add_routes([web.get("/ws", self._ws), web.get("/watch", self._watch), web.get("/get", self._get)])
        app.add_routes([web.get("/version", self._get)])
        app.add_routes([web.get("/api/v1/namespaces/shop/configmaps", self._watch)])
        server = TestServer(app)
        await server.start_server()
        return server

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=[PROTOCOL])
        await socket.prepare(request)
        await socket.send_bytes(b"\0\0\0")
        async for message in socket:
            await socket.send_bytes(message.data)
        return socket

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(2):
            await response.write(b'{"type":"ADDED","object":{}}\n')
            await self.renewed.wait()
        return response

    async def _get(self, request: web.Request) -> web.Response:
        self.tokens.append(int(request.headers["Authorization"].removeprefix("Bearer ")))
        if self.tokens[-1] < self.least:
            return web.json_response({"message": "Unauthorized"}, status=401)
        return web.json_response({"major": "1", "minor": "30"})


class Near(asyncio.Protocol):
    """What the SSH connection would be."""

    def __init__(self) -> None:
        self.heard = asyncio.Queue[bytes | None]()

    def data_received(self, data: bytes) -> None:
        self.heard.put_nowait(bytes(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.put_nowait(None)


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    found = Far()
    server = await found.serve()
    found.url = str(server.make_url("")).rstrip("/")
    yield found
    await server.close()


def connected(far: Far, credentials: Credentials) -> Api:
    credentials.host = far.url
    return Api(cast(Any, credentials))


async def echoed(transport: PodTransport, near: Near) -> bool:
    transport.write(b"hello")
    async with asyncio.timeout(5):
        return await near.heard.get() is not None


@pytest.mark.parametrize("certificates", [False, True])
async def test_credentials_that_are_refused_cut_nothing_that_runs(far: Far, certificates: bool) -> None:
    api = connected(far, Credentials(certificates=certificates))
    socket, _ = await api.websocket("/ws", [], [PROTOCOL])
    near = Near()
    transport = PodTransport(socket, near, "agent", 2222)
    transport.begin()
    watch = api.watch("/watch")
    await anext(watch)
    assert await echoed(transport, near)
    far.least = 2
    await api.get("/get")
    assert far.tokens == [1, 2]
    assert await echoed(transport, near)
    far.renewed.set()
    async with asyncio.timeout(5):
        assert len([each async for each in watch]) == 1  # the rest of it, up to its end
    transport.abort()
    await api.close()


async def test_a_certificate_that_is_renewed_cuts_nothing_and_its_session_ends_with_what_ran_through_it(
    far: Far,
) -> None:
    credentials = Credentials(certificates=True)
    api = connected(far, credentials)
    socket, _ = await api.websocket("/ws", [], [PROTOCOL])
    near = Near()
    transport = PodTransport(socket, near, "agent", 2222)
    transport.begin()
    credentials.old = True
    await api.get("/get")
    assert credentials.asked == 2
    assert await echoed(transport, near)
    assert len(api._former) == 1
    former = api._former[0]
    transport.abort()
    await api.get("/get")
    assert api._former == [] and not former.used
    assert former._client.rest_client.pool_manager.closed
    await api.close()


async def test_requests_that_are_refused_at_once_ask_the_plugin_once(far: Far) -> None:
    credentials = Credentials()
    api = connected(far, credentials)
    await api.get("/get")
    far.least = 2
    await asyncio.gather(*(api.get("/get") for _ in range(5)))
    assert credentials.asked == 2
    far.least = 9
    with pytest.raises(ApiError):  # what the plugin gives is no good either
        await api.get("/get")
    assert credentials.asked == 3
    await api.close()


async def test_a_token_of_a_file_is_read_anew_when_it_is_refused(far: Far) -> None:
    api = connected(far, Credentials("tokenFile"))
    far.least = 2
    await api.get("/get")
    assert far.tokens == [1, 2]
    await api.close()


@pytest.mark.parametrize("ends", ["known", "refused"])
async def test_workloads_are_read_on_after_a_tokens_end(far: Far, tmp_path: Path, ends: str) -> None:
    """Those of EKS are good for a quarter of an hour. The plugin gives another one each time that it is run."""
    plugin = tmp_path / "plugin"
    until = datetime.now(UTC) + timedelta(seconds=20 if ends == "known" else 3600)  # 20: within the margin at once
    plugin.write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/runs\n"
        """echo '{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": {"token": "'"""
        f"""$(wc -l < {tmp_path}/runs)'", "expirationTimestamp": "{until.isoformat()}"}}}}'\n"""
    )
    plugin.chmod(0o755)
    how = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    named = {"clusters": {"cluster": {"server": far.url}}, "users": {"user": {"exec": how}}}
    named |= {"contexts": {"context": {"cluster": "x", "user": "x"}}}
    parts = {key: [{"name": "x", **value}] for key, value in named.items()}
    (tmp_path / "config").write_text(json.dumps({"current-context": "x", **parts}))
    chosen = Kubeconfig(tmp_path / "config")
    settings = await chosen.configuration()
    async with KubeCluster(settings, "shop", Lasting(chosen, settings)) as cluster:
        if ends == "refused":
            await cluster.version()
        far.least = 2
        assert await cluster.version() == (1, 30)
        assert far.tokens == ([2] if ends == "known" else [1, 1, 2])


async def test_workloads_are_read_with_a_certificate_that_is_renewed(far: Far, tmp_path: Path) -> None:
    """A session shows the one that it was made with."""
    credentials = Credentials(certificates=True)
    credentials.host = far.url
    settings = await credentials.configuration()
    async with KubeCluster(settings, "shop", Lasting(cast(Any, credentials), settings)) as cluster:
        watch = cluster.watch(kinds.CONFIG_MAP, "one", "1")
        assert (await anext(watch)).type == "ADDED"
        first = cluster._api
        far.least = 2
        assert await cluster.version() == (1, 30)
        assert cluster._api is not first and cluster._streams.configuration.key_file == settings.key_file
        far.renewed.set()
        async with asyncio.timeout(5):
            assert len([each async for each in watch]) == 1


async def test_a_token_of_the_kubeconfig_is_sent_once(far: Far) -> None:
    api = connected(far, Credentials("token"))
    far.least = 2
    with pytest.raises(ApiError):
        await api.get("/get")
    assert far.tokens == [1]
    await api.close()

"""Ports that speak TLS: what is inside is seen with the certificate, and passes as it is without."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from devloop.agent import hello
from devloop.agent.certificates import Termination, names, pin
from devloop.agent.spec import ALL, Header, Match, Route
from devloop.attach.local_tls import Identity, TlsEnd
from tests.certificates import Authority, Pair, client_context, server_context
from tests.waiting import until

from .envoy_here import HERE, NAME, Local, a_rig, ended, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
MINE = Route((Header("x-user", Match("exact", "ada")),))
CA = Authority()
SERVER = CA.sign(NAME, NAME, f"{NAME}.space.svc")


@asynccontextmanager
async def answering(name: str, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """An HTTP/1.1 server that answers with its name, over TLS if there is a context; and the heads of its requests."""
    heads: list[bytes] = []
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())
        await ended(writer)
        writers.discard(writer)

    async with await asyncio.start_server(serve, HERE, 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], heads
        for each in writers:
            each.transport.abort()
        await until(lambda: not writers)


class Client:
    """A connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, port: int, context: ssl.SSLContext | None, name: str = NAME) -> Client:
        """Connect."""
        async with asyncio.timeout(10):
            return cls(
                *await asyncio.open_connection(HERE, port, ssl=context, server_hostname=name if context else None)
            )

    async def ask(self, *lines: str, method: str = "GET") -> str:
        """Who answers."""
        head = "".join(f"{each}\r\n" for each in (f"{method} / HTTP/1.1", f"Host: {NAME}", *lines, ""))
        self._writer.write(head.encode())
        async with asyncio.timeout(10):
            answer = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in answer.splitlines() if line.lower().startswith("content-length"))
            return (await self._reader.readexactly(int(length.split(":")[1]))).decode()

    async def close(self) -> None:
        """End it."""
        self._writer.transport.abort()
        await ended(self._writer)


async def asked(port: int, context: ssl.SSLContext, *lines: str, name: str = NAME) -> str:
    """The answer on a new connection."""
    client = await Client.to(port, context, name)
    try:
        return await client.ask(*lines)
    finally:
        await client.close()


async def ending(original: int, pair: Pair = SERVER, **more: str) -> Termination:
    """What an engine makes of the Secret and of what the original says."""
    said = await hello.look([(HERE, original)], NAME)
    assert said.tls and said.pins == {pin(pair.certificate)}
    return Termination(pair.certificate, pair.key, said.alpn, pins=tuple(said.pins), **more)


class Encrypted(TlsEnd):
    """With the port that the rig asks for."""

    port = 0


def with_tls(local: int, server: str = NAME, pair: Pair | None = None) -> tuple[Encrypted, list[str]]:
    """A local service that speaks TLS, and what was said about it."""
    said: list[str] = []
    end = Encrypted(cast(Any, Local(local)), lambda port, why: said.append(why))
    end.port = local
    end.ports = {local: Identity(server, pair.certificate if pair else "", pair.key if pair else "")}
    return end, said


@pytest.mark.parametrize("speaks", ["tls", "plain"])
async def test_a_header_route_of_a_port_that_speaks_tls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, speaks: Any
) -> None:
    context = server_context(tmp_path, SERVER, "http/1.1")
    client = client_context(tmp_path, CA.certificate)
    async with (
        answering("original", context) as (original, first),
        answering("local", context if speaks == "tls" else None) as (local, heads),
        a_rig(monkeypatch, original, "https") as rig,
    ):
        end = with_tls(local)[0] if speaks == "tls" else Local(local)
        await rig.attach(end, MINE, tls=await ending(original), inside=speaks)
        port = rig.proxy.port
        kept = await Client.to(port, client)
        for _ in range(3):
            assert await kept.ask("x-user: ada") == "local"
            assert await kept.ask("x-user: ben") == "original"
        assert await asked(port, client, "X-Forwarded-Proto: https") == "original"
        assert b"X-Forwarded-Proto: https\r\n" in first[-1]
        assert not any(b"orwarded" in each for each in heads)
        assert rig.spec is not None
        await rig.session.tell(rig.spec, False)
        assert await kept.ask("x-user: ada") == "original"
        await rig.session.tell(rig.spec, True)
        assert await kept.ask("x-user: ada") == "local"
        await rig.leave()
        assert await kept.ask("x-user: ada") == "original"
        assert await asked(port, client, "x-user: ada") == "original"
        await kept.close()


def secrets_in(folder: Path, *texts: str) -> list[Path]:
    """Files below it that have any of these."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and any(text in path.read_text(errors="replace") for text in texts):
                found.append(path)
    return found


async def test_a_key_is_in_no_file_and_a_rotated_one_is_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = server_context(tmp_path, SERVER, "http/1.1")
    client = client_context(tmp_path, CA.certificate)
    async with (
        answering("original", context) as (original, _),
        answering("local") as (local, _),
        a_rig(monkeypatch, original, "https") as rig,
    ):
        tls = await ending(original)
        await rig.attach(Local(local), MINE, tls=tls, inside="plain")
        port = rig.proxy.port
        kept = await Client.to(port, client)
        assert await kept.ask("x-user: ada") == "local"
        assert rig.agent is not None and rig.spec is not None
        body = SERVER.key.splitlines()[2]
        gateway = rig.agent._gateway
        assert gateway._memory is not None
        assert secrets_in(rig.agent.folder, body) == secrets_in(gateway._memory, body) == []
        assert body not in caplog.text and body not in repr(rig.agent._last) + repr(tls)

        rotated = CA.sign(NAME, NAME)
        new = Termination(rotated.certificate, rotated.key, tls.alpn, pins=(pin(rotated.certificate),))
        await rig.session.renew(rig.spec, {port: new})
        assert await served(port, client) == pin(rotated.certificate)
        assert await kept.ask("x-user: ada") == "local"  # connections go on
        assert await asked(port, client) == "original"  # which has not taken it up yet
        context.load_cert_chain(*rotated.files(tmp_path, "rotated"))
        assert await asked(port, client) == "original"
        assert secrets_in(gateway._memory, rotated.key.splitlines()[2]) == []

        assert gateway._transport is not None  # Envoy ends, and another one goes on with the same
        before = gateway._transport.get_pid()
        gateway._transport.kill()
        await until(lambda: gateway._transport is not None and gateway._transport.get_pid() != before)
        await until(gateway._started.is_set)
        assert await served(port, client) == pin(rotated.certificate)
        assert await asked(port, client, "x-user: ada") == "local"
        assert secrets_in(gateway._memory, rotated.key.splitlines()[2]) == []
        await kept.close()
        await rig.leave()


async def served(port: int, context: ssl.SSLContext) -> str:
    """The pin of the certificate that clients see."""
    _, writer = await asyncio.open_connection(HERE, port, ssl=context, server_hostname=NAME)
    certificate = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.transport.abort()
    await ended(writer)
    return pin(bytes(certificate))


async def test_without_a_certificate_whole_connections_and_server_names_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pair = CA.sign(NAME, NAME, "ada.example", "x.ben.example")
    context = server_context(tmp_path, pair)
    client = client_context(tmp_path, CA.certificate)
    async with (
        answering("original", context) as (original, _),
        answering("local", context) as (local, _),
        a_rig(monkeypatch, original, "https") as rig,
    ):
        end, _ = with_tls(local)
        await rig.attach(end, Route(sni="ada.example"), Route(sni="*.ben.example"))
        port = rig.proxy.port
        assert await asked(port, client) == "original"
        assert await asked(port, client, name="ada.example") == "local"
        assert await asked(port, client, name="x.ben.example") == "local"
        assert rig.spec is not None
        await rig.session.tell(rig.spec, False)
        assert await asked(port, client, name="ada.example") == "original"
        await rig.leave()
        assert await asked(port, client, name="ada.example") == "original"
        await rig.attach(end, ALL)
        assert await asked(port, client) == "local"
        await rig.leave()


async def test_a_connection_that_nobody_here_takes_goes_to_the_original(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = server_context(tmp_path, SERVER)
    client = client_context(tmp_path, CA.certificate)
    async with answering("original", context) as (original, _), a_rig(monkeypatch, original, "https") as rig:

        class Refuses(Local):
            async def connect(self, factory: Callable[[], Any], port: int) -> Any:
                raise ConnectionRefusedError

        await rig.attach(Refuses(1), ALL)
        assert await asked(rig.proxy.port, client) == "original"
        await rig.leave()
        await rig.attach(Refuses(1), ALL, MINE, tls=await ending(original))
        assert await asked(rig.proxy.port, client, "x-user: ada") == "original"
        await rig.leave()


async def test_client_certificates_are_checked_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clients = Authority("clients")
    ann, devloop = clients.sign("ann"), clients.sign("devloop")
    context = server_context(tmp_path, SERVER, "http/1.1", client_ca=clients.certificate)
    async with (
        answering("original", context) as (original, first),
        answering("local", context) as (local, heads),
        a_rig(monkeypatch, original, "https") as rig,
    ):
        said = await hello.look([(HERE, original)], NAME)
        assert (said.client, said.alpn) == ("required", ("http/1.1",))
        more = {"client_certificate": devloop.certificate, "client_key": devloop.key}
        tls = await ending(original, client_ca=clients.certificate, **more)
        await rig.attach(with_tls(local, pair=devloop)[0], MINE, tls=tls)
        port = rig.proxy.port
        client = client_context(tmp_path, CA.certificate, pair=ann)
        assert await asked(port, client, "x-user: ada", "x-forwarded-client-cert: Subject=root") == "local"
        assert await asked(port, client) == "original"
        for head in (heads[-1], first[-1]):
            assert head.lower().count(b"x-forwarded-client-cert") == 1
            assert b"CN=ann" in head and b"root" not in head
        for other in (None, Authority("others").sign("ann")):
            stranger = client_context(tmp_path, CA.certificate, pair=other)
            with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
                await asked(port, stranger)
        await rig.leave()


async def test_what_a_server_says_of_itself(tmp_path: Path) -> None:
    clients = Authority("clients")
    context = server_context(tmp_path, SERVER, "h2", client_ca=clients.certificate, wanted=False)
    async with answering("x", context) as (port, _):
        said = await hello.look([(HERE, port)], NAME)
    assert (said.tls, said.alpn, said.client) == (True, ("h2",), "optional")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = server_context(tmp_path, SERVER, client_ca=clients.certificate)
        context.minimum_version = context.maximum_version = version
        async with answering("x", context) as (port, _):
            said = await hello.look([(HERE, port)], NAME)
        assert (said.tls, said.alpn, said.client) == (True, (), "required")
        assert said.pins == {pin(SERVER.certificate)}
    async with answering("x") as (port, _):
        assert await hello.look([(HERE, port)], NAME) == hello.Hello(reached=True)
    assert await hello.look([(HERE, port)], NAME) == hello.Hello()
    assert names(SERVER.certificate) == (NAME, f"{NAME}.space.svc")


@asynccontextmanager
async def calls(name: bytes, pair: Pair | None) -> AsyncIterator[int]:
    """A gRPC server that answers with its name."""

    async def who(request: bytes, context: Any) -> bytes:
        return name

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x", handlers),))
    if pair is None:
        port = server.add_insecure_port(f"{HERE}:0")
    else:
        keys = [(pair.key.encode(), pair.certificate.encode())]
        port = server.add_secure_port(f"{HERE}:0", grpc.ssl_server_credentials(keys))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@pytest.mark.parametrize("speaks", ["tls", "plain"])
async def test_grpc_over_tls(monkeypatch: pytest.MonkeyPatch, speaks: Any) -> None:
    async with (
        calls(b"original", SERVER) as original,
        calls(b"local", SERVER if speaks == "tls" else None) as local,
        a_rig(monkeypatch, original, "https") as rig,
    ):
        end = with_tls(local)[0] if speaks == "tls" else Local(local)
        await rig.attach(end, MINE, tls=await ending(original), inside=speaks)
        credentials = grpc.ssl_channel_credentials(CA.certificate.encode())
        options = [("grpc.ssl_target_name_override", NAME), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.secure_channel(f"{HERE}:{rig.proxy.port}", credentials, options=options)
        who: Any = channel.unary_unary("/x/Who")
        for _ in range(3):
            assert await who(b"", timeout=10, metadata=(("x-user", "ada"),)) == b"local"
            assert await who(b"", timeout=10) == b"original"
        await rig.leave()
        for _ in range(3):
            assert await who(b"", timeout=10, metadata=(("x-user", "ada"),)) == b"original"
        await channel.close()


async def test_a_local_service_that_speaks_no_tls_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context = server_context(tmp_path, SERVER)
    client = client_context(tmp_path, CA.certificate)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with (
        answering("original", context) as (original, _),
        serving(plain) as local,
        a_rig(monkeypatch, original, "https") as rig,
    ):
        end, said = with_tls(local)
        await rig.attach(end, MINE, tls=await ending(original))
        assert await asked(rig.proxy.port, client, "x-user: ada") == "original"
        assert said and 'local = "plain"' in said[0]
        await rig.leave()

"""Probes of what speaks TLS, redirects or gRPC: a real TLS server, and grpcio's own server and health service."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from devloop.config.model import MS, SECOND, ExecCheck, GrpcCheck, HttpCheck, Probe, Tls
from devloop.local.probes import CheckFailed, check_once, until_ready

pytestmark = pytest.mark.slow


async def no_command(_: ExecCheck, __: float) -> int:
    raise AssertionError


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, private


@asynccontextmanager
async def web(answers: dict[str, bytes], tls: tuple[Path, Path] | None = None) -> AsyncIterator[int]:
    """Answers each path with what it is told, in HTTP."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = (await reader.readline()).decode("latin-1").split()
        answer = answers.get(words[1], BAD) if len(words) > 1 else BAD
        writer.write(answer.replace(b"PORT", str(port).encode()))
        await writer.drain()
        writer.close()

    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    port: int = server.sockets[0].getsockname()[1]
    async with server:
        yield port


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


def moved(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


async def test_https_with_any_certificate_or_that_of_an_authority(tmp_path: Path) -> None:
    own, other = certificate(tmp_path, "own"), certificate(tmp_path, "other")
    async with web({"/": OK}, own) as port:
        check = HttpCheck("localhost", port, "/", Tls())
        await check_once(check, 5, no_command)
        await check_once(replace(check, tls=Tls(own[0])), 5, no_command)
        with pytest.raises(CheckFailed, match="its certificate is not accepted: self"):
            await check_once(replace(check, tls=Tls(other[0])), 5, no_command)
        with pytest.raises(CheckFailed, match="its certificate is not accepted: IP address mismatch"):
            await check_once(replace(check, host="127.0.0.1", tls=Tls(own[0])), 5, no_command)
        with pytest.raises(CheckFailed, match="`ca` can't be read"):
            await check_once(replace(check, tls=Tls(tmp_path / "gone.pem")), 5, no_command)
        with pytest.raises(CheckFailed, match="`ca` can't be read"):
            await check_once(replace(check, tls=Tls(own[1])), 5, no_command)


async def test_plain_http_where_tls_is_expected_and_the_other_way_round(tmp_path: Path) -> None:
    async with web({"/": OK}) as port:
        with pytest.raises(CheckFailed, match="does not speak TLS as expected"):
            await check_once(HttpCheck("localhost", port, "/", Tls()), 5, no_command)
    async with web({"/": OK}, certificate(tmp_path, "own")) as port:
        with pytest.raises(CheckFailed, match=r"hung up without an answer|does not speak HTTP"):
            await check_once(HttpCheck("localhost", port), 5, no_command)


async def test_redirects_on_its_own_host_are_followed() -> None:
    answers = {
        "/": moved("/login?next=/"),
        "/login?next=/": OK,
        "/sick": moved("http://LOCALHOST:PORT/busy"),
        "/busy": BUSY,
        "/away": moved("https://login.example.test/"),
        "/round": moved("/round"),
        "/odd": moved("http://[::bad/"),
        "/words": moved("/über uns?q=ä%20b#top"),
        "/%C3%BCber%20uns?q=%C3%A4%20b": OK,
        "/nowhere": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    }
    async with web(answers) as port:
        for path in ("/", "/away", "/nowhere", "/words", "/über uns?q=ä b"):
            await check_once(HttpCheck("localhost", port, path), 5, no_command)
        for path, words in (
            ("/sick", "GET /busy answered 503"),
            ("/round", "redirected more than 10 times"),
            ("/odd", "is no URL"),
        ):
            with pytest.raises(CheckFailed, match=words):
                await check_once(HttpCheck("localhost", port, path), 5, no_command)


@pytest.fixture
def grpc_server(tmp_path: Path) -> Iterator[tuple[health.HealthServicer, int, int, Path]]:
    """grpcio's server with its health service, in the clear and over TLS."""
    from concurrent.futures import ThreadPoolExecutor

    cert, key = certificate(tmp_path, "grpc")
    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool)
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    plain = server.add_insecure_port("127.0.0.1:0")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    secure = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield servicer, plain, secure, cert
    server.stop(None).wait()
    pool.shutdown()


async def test_grpc_health(grpc_server: tuple[health.HealthServicer, int, int, Path]) -> None:
    servicer, plain, secure, cert = grpc_server
    serving, down = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    servicer.set("", serving)
    servicer.set("shop.Cart", down)
    for check in (
        GrpcCheck("localhost", plain),
        GrpcCheck("localhost", secure, tls=Tls()),
        GrpcCheck("localhost", secure, tls=Tls(cert)),
    ):
        await check_once(check, 5, no_command)
        with pytest.raises(CheckFailed, match=r"shop\.Cart is NOT_SERVING"):
            await check_once(replace(check, service="shop.Cart"), 5, no_command)
        with pytest.raises(CheckFailed, match=r"does not know shop\.Basket"):
            await check_once(replace(check, service="shop.Basket"), 5, no_command)
    long = "s" * 300  # a length of two bytes
    servicer.set(long, serving)
    await check_once(GrpcCheck("localhost", plain, long), 5, no_command)


async def test_what_is_no_grpc_is_told_in_words() -> None:
    async with web({"*": OK, "/": OK}) as port:
        with pytest.raises(CheckFailed, match=r"does not speak gRPC|hung up without an answer"):
            await check_once(GrpcCheck("localhost", port), 5, no_command)
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(CheckFailed, match="has no gRPC health service"):
        await check_once(GrpcCheck("localhost", port), 5, no_command)
    await server.stop(None)


async def test_a_reason_is_told_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.local.probes.QUIET", 0)
    answers = {"/": BUSY}
    said: list[str] = []

    def waiting(reason: str) -> None:
        said.append(reason)
        answers["/"] = moved("/round") if len(said) == 1 else OK

    answers["/round"] = moved("/round")
    async with web(answers) as port:
        probe = Probe(HttpCheck("localhost", port), 5 * MS, 5 * SECOND, 60 * SECOND, 3)
        await until_ready(probe, no_command, lambda _: pytest.fail("it is not late"), None, waiting)
    assert said == ["GET / answered 503", "GET / is redirected more than 10 times, last to /round"]

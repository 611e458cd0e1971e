"""The `grpc` check: the standard health service (grpc.health.v1.Health/Check), as the kubelet's grpc probe asks it."""

from __future__ import annotations

import asyncio
import struct

from devloop.agent.addresses import host_port
from devloop.config.model import GrpcCheck
from devloop.local.probe_http import CheckFailed, Streams

SERVING = 1
_STATUSES = {0: "UNKNOWN", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
"""grpc.health.v1.HealthCheckResponse.ServingStatus."""
_NOT_FOUND, _UNIMPLEMENTED = 5, 12
"""google.rpc.Code, as `grpc-status` carries it."""
_MOST = 64 * 1024
"""Bytes of an answer; a health service's is two long."""


async def ask(check: GrpcCheck, streams: Streams) -> None:
    """Pass if the service is SERVING, or raise CheckFailed. The connection is ended."""
    reader, writer = streams
    try:
        code, words, status = await _call(check, reader, writer)
    finally:
        writer.transport.abort()
    where = host_port(check.host, check.port)
    service = check.service or "the server"
    if code == _UNIMPLEMENTED:
        raise CheckFailed(f"{where} has no gRPC health service (grpc.health.v1.Health)")
    if code == _NOT_FOUND:
        raise CheckFailed(f"the gRPC health service of {where} does not know {service}")
    if code:
        raise CheckFailed(f"the gRPC health service of {where} answered with status {code} {words}".rstrip())
    if status != SERVING:
        raise CheckFailed(f"{service} is {_STATUSES.get(status, str(status))}")


async def _call(check: GrpcCheck, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, str, int]:
    """One unary call: `grpc-status`, its message, and the health status."""
    import h2.config  # late: few projects have such a probe
    import h2.connection
    import h2.errors
    import h2.events
    import h2.exceptions

    where = host_port(check.host, check.port)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    connection.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "https" if check.tls else "http"),
            (":authority", where),
            (":path", "/grpc.health.v1.Health/Check"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "devloop-probe"),
        ],
    )
    connection.send_data(1, _request(check.service), end_stream=True)
    headers: dict[str, str] = {}
    body = bytearray()
    while True:
        writer.write(connection.data_to_send())
        data = await reader.read(65536)
        if not data:
            raise CheckFailed(f"{where} hung up without an answer")
        try:
            events = connection.receive_data(data)
        except h2.exceptions.ProtocolError as problem:
            raise CheckFailed(f"{where} does not speak gRPC: {problem or type(problem).__name__}") from None
        for event in events:
            match event:
                case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                    headers |= {str(name): str(value) for name, value in event.headers or ()}
                case h2.events.DataReceived():
                    body += event.data or b""
                    if len(body) > _MOST:
                        raise CheckFailed(f"{where} answers with more than a health service does")
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    raise CheckFailed(f"{where} does not speak gRPC: error code {event.error_code}")
                case h2.events.StreamEnded():
                    return _read(where, headers, bytes(body))


def _request(service: str) -> bytes:
    """HealthCheckRequest {string service = 1}, with gRPC's prefix of a message."""
    name = service.encode()
    message = b"" if not name else b"\x0a" + _varint(len(name)) + name
    return struct.pack(">BI", 0, len(message)) + message


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def _read(where: str, headers: dict[str, str], body: bytes) -> tuple[int, str, int]:
    if headers.get(":status") != "200" or not headers.get("content-type", "").startswith("application/grpc"):
        raise CheckFailed(f"{where} does not speak gRPC: it answered with HTTP status {headers.get(':status')}")
    code = headers.get("grpc-status", "")
    if not code.isdecimal():
        raise CheckFailed(f"{where} does not speak gRPC: its answer has no grpc-status")
    # HealthCheckResponse {ServingStatus status = 1}: 0 is not sent. An enum of four fits one byte.
    message = body[5:]
    status = message[1] if len(message) >= 2 and message[0] == 0x08 else 0
    return int(code), headers.get("grpc-message", ""), status

"""What speaks TLS in the tests of attachments: a server that answers with its name (HTTP/1.1, gRPC), and a load.

Run in pods with `attach_grpc.py` before it; imports nothing of devloop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import sys
from collections import Counter
from pathlib import Path
from typing import Any

GREETER: Any = globals().get("Greeter")
"""`attach_grpc.Greeter`, where its source stands before this."""


def context(folder: str, *alpn: str, clients: bool) -> ssl.SSLContext:
    """A server's, with the files of a Secret; `clients` have to show a certificate of its authority's."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
    made.set_alpn_protocols(list(alpn))
    if clients:
        made.load_verify_locations(f"{folder}/ca.crt")
        made.verify_mode = ssl.CERT_REQUIRED
    return made


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    """One connection of HTTP/1.1: each answer says who it was, and which client certificate was told of."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = {key.lower(): value.strip() for key, _, value in (x.partition(":") for x in head.split("\r\n"))}
            body = json.dumps({"who": name, "client": headers.get("x-forwarded-client-cert", "")}).encode()
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


async def serve(
    name: str, port: int, made: ssl.SSLContext | None, greeter: Any = None, host: str | None = None
) -> asyncio.Server:
    """HTTP/1.1, or gRPC with `greeter`. On every address without `host`; with port 0, each family has its own."""

    async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greeter is not None:
            await greeter(name).serve(reader, writer)
        else:
            await answer(reader, writer, name)

    return await asyncio.start_server(came, host, port, ssl=made)


async def load(plan: dict[str, Any]) -> dict[str, Any]:
    """Ask again and again on kept and new connections, until a file is there; who has answered, and what failed."""
    trust = ssl.create_default_context(cafile=f"{plan['folder']}/ca.crt")
    if plan.get("client"):
        trust.load_cert_chain(f"{plan['client']}/tls.crt", f"{plan['client']}/tls.key")
    who: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    request = f"GET / HTTP/1.1\r\nHost: {plan['host']}\r\nx-user: {plan['user']}\r\n\r\n".encode()

    async def ask(kept: bool) -> None:
        stop = Path(plan["file"])
        streams: Any = None
        while not stop.exists():  # noqa: ASYNC240 (a look at one file)
            try:
                async with asyncio.timeout(15):
                    if streams is None:
                        streams = await asyncio.open_connection(plan["host"], plan["port"], ssl=trust)
                    streams[1].write(request)
                    head = (await streams[0].readuntil(b"\r\n\r\n")).decode().lower()
                    length = int(head.partition("content-length:")[2].split("\r\n")[0])
                    body = json.loads(await streams[0].readexactly(length))
                who[body["who"].partition("-")[0]] += 1
                over = not kept or "connection: close" in head
            except (OSError, EOFError, ValueError, KeyError, TimeoutError) as problem:
                failed[f"{type(problem).__name__}: {problem}"] += 1
                over = True
            if over and streams is not None:
                streams[1].transport.abort()
                streams = None
            await asyncio.sleep(0.01)

    await asyncio.gather(*(ask(number % 2 == 0) for number in range(plan.get("clients", 6))))
    return {"who": dict(who), "failed": dict(failed)}


async def main() -> None:
    """`serve FOLDER PORT (http|grpc) (clients|anybody)` or `load PLAN`."""
    match sys.argv[1:]:
        case ["serve", folder, port, kind, clients]:
            made = context(folder, *(["h2"] if kind == "grpc" else ["http/1.1"]), clients=clients == "clients")
            server = await serve(os.environ["NAME"], int(port), made, GREETER if kind == "grpc" else None)
            await server.serve_forever()
        case ["load", plan]:
            print(json.dumps(await load(json.loads(plan))))


if __name__ == "__main__":
    asyncio.run(main())

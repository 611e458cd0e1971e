"""What the links' contract connects to, on both sides of a link the same: a few TCP services in one process.

Runs alone (`python3 target.py FIRST_PORT [ADDRESS]`, standard library, Python 3.11), here and in a pod.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys

ECHO, SINK, SOURCE, CLOSER, SILENT, COUNTER = range(6)
SERVICES = 6
REFUSED = 9
"""First port plus this: nothing listens there."""


def block(number: int) -> bytes:
    """64 KiB that no other block is like."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest() * 2048


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes; the end as well."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read as many bytes as the first line says, or to the `end`; answer with how much it was and its digest."""
    line = (await reader.readline()).strip()
    left = sys.maxsize if line == b"end" else int(line)
    digest, size = hashlib.sha256(), 0
    while left and (data := await reader.read(min(left, 1 << 18))):
        digest.update(data)
        size += len(data)
        left -= len(data)
    writer.write(f"{size} {digest.hexdigest()}".encode())


async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send as many blocks as the line asks for, then end."""
    for number in range(int(await reader.readline())):
        writer.write(block(number))
        await writer.drain()


async def closer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say something and close, whatever the client does."""
    writer.write(b"bye")


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read nothing."""
    writer.write(b"hello\n")
    await asyncio.sleep(3600)


connected = 0


async def counter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say how many are connected to this, and wait for the end."""
    global connected
    connected += 1
    try:
        writer.write(b"%d\n" % connected)
        while await reader.read(1 << 16):
            pass
    finally:
        connected -= 1


async def main(first: int, address: str) -> None:
    """Serve on the ports from `first` on, and say so on stdout."""

    def serving(handler):  # type: ignore[no-untyped-def]
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
                await writer.drain()
            except (OSError, ValueError):
                pass
            finally:
                writer.close()

        return serve

    handlers = (echo, sink, source, closer, silent, counter)
    servers = [
        await asyncio.start_server(serving(each), address, first + index if first else 0, backlog=2048)
        for index, each in enumerate(handlers)
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"))

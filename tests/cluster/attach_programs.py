"""What runs in pods for the attachment tests, with nothing but Python: a service, and a load on it.

python3 -c SOURCE serve NAME [PORT]     HTTP/1.1 (keep-alive, WebSocket's handshake and echo), and TCP on PORT+1
python3 -c SOURCE load JSON             asks at a rate, prints one JSON object at the end
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import sys
import time
from typing import Any

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, seen: list[Any]) -> None:
    """One connection: each answer says who has answered what."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            method, path, _ = first.split(" ")
            headers = {key.lower(): value.strip() for key, _, value in (each.partition(":") for each in lines if each)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            seen.append((method, path, headers, body))
            if headers.get("upgrade", "").lower() == "websocket":
                accept = base64.b64encode(
                    hashlib.sha1((headers["sec-websocket-key"] + GUID).encode()).digest()
                ).decode()
                writer.write(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
                )
                while data := await reader.read(65536):
                    writer.write(name.encode() + b":" + data)
                return
            if path.startswith("/slow"):
                await asyncio.sleep(float(path.partition("=")[2] or 1))
            answer = json.dumps({"who": name, "method": method, "path": path, "length": len(body)}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Who: "
                + f"{name}\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
                + answer
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, OSError):
        pass
    except asyncio.CancelledError:  # the program ends, and asyncio would print a traceback for each connection
        pass
    finally:
        writer.close()


async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    """Speaks first, then echoes: no HTTP."""
    try:
        writer.write(f"hello from {name}\n".encode())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, OSError):
        pass
    finally:
        writer.close()


async def serve(name: str, port: int) -> None:
    """Until SIGTERM; then what is being answered is answered."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    seen: list[Any] = []
    host = os.environ.get("LISTEN") or None  # "::" is IPv6 alone, for asyncio; None is both families
    one = await asyncio.start_server(lambda r, w: http(r, w, name, seen), host, port, backlog=1024)
    other = await asyncio.start_server(lambda r, w: tcp(r, w, name), host, port + 1)
    async with one, other:
        await stopped.wait()


class Client:
    """A keep-alive HTTP/1.1 client that notes every answer; with `requests` in its plan, of so many at most."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.host, self.port = plan["host"], plan["port"]
        self.until = time.time() + plan["seconds"]
        self.answers: list[tuple[float, float, str, int]] = []  # when, milliseconds, who, status
        self.failures: list[tuple[float, str]] = []
        self.next = time.monotonic()
        self.left = plan.get("requests", -1)  # below zero: as many as the time allows

    def request(self) -> bytes:
        body = b"x" * self.plan.get("body", 0)
        lines = [f"{self.plan.get('method', 'GET')} {self.plan.get('path', '/')} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{key}: {value}" for key, value in self.plan.get("headers", {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def work(self) -> None:
        reader: Any = None
        writer: Any = None
        served = 0
        rate, each = self.plan.get("rate"), self.plan.get("requests_per_connection", 50)
        while time.time() < self.until and self.left:
            self.left -= 1
            if rate:
                slot = self.next = max(self.next + 1 / rate, time.monotonic() - 0.5)
                await asyncio.sleep(max(0.0, slot - time.monotonic()))
            began = time.time()
            clock = time.monotonic()
            try:
                async with asyncio.timeout(self.plan.get("timeout", 15)):
                    if writer is not None and (reader.exception() or reader.at_eof() or writer.is_closing()):
                        writer.close()  # it was ended while it lay idle: no pool uses such a one
                        writer = None
                    if writer is None:
                        reader, writer = await asyncio.open_connection(self.host, self.port)
                        served = 0
                    writer.write(self.request())
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
                    body = await reader.readexactly(length)
                status = int(head.split(" ")[1])
                if status == 200 and "path" not in self.plan:
                    who = json.loads(body)["who"]
                else:
                    who = body[:60].decode(errors="replace")
                self.answers.append((began, (time.monotonic() - clock) * 1000, who, status))
                if status != 200:
                    self.failures.append((began, f"{status} {who}"))
                served += 1
                if "connection: close" in head or served >= each:
                    writer.close()
                    writer = None
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as problem:
                self.failures.append((began, f"{type(problem).__name__}: {problem} after {served}"))
                if writer is not None:
                    writer.close()
                writer = None

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: setattr(self, "until", 0))
        if "file" in self.plan:
            asyncio.get_running_loop().create_task(self.stop_when_told())
        began = time.time()
        await asyncio.gather(*(self.work() for _ in range(self.plan.get("connections", 4))))
        took = time.time() - began
        counts: dict[str, int] = {}
        changes: list[tuple[float, str]] = []
        for when, _, who, _ in sorted(self.answers):
            counts[who] = counts.get(who, 0) + 1
            if not changes or changes[-1][1] != who:
                changes.append((when, who))
        times = sorted(each[1] for each in self.answers) or [0.0]
        print(
            json.dumps(
                {
                    "counts": counts,
                    "failures": self.failures[:50],
                    "failed": len(self.failures),
                    "changes": changes[:200],
                    "answered": len(self.answers),
                    "rate": len(self.answers) / took,
                    "p50": times[len(times) // 2],
                    "p99": times[int(len(times) * 0.99)],
                    "max": times[-1],
                }
            )
        )

    async def stop_when_told(self) -> None:
        while not os.path.exists(self.plan["file"]):  # noqa: ASYNC110, ASYNC240, PTH110
            await asyncio.sleep(0.02)
        self.until = 0


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 8080))
    else:
        asyncio.run(Client(json.loads(sys.argv[2])).run())

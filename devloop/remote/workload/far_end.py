"""What runs in the ephemeral container: its main process, and an SFTP server for each connection.

The source of this module is sent along with a command; the agent image needs Python and asyncssh, and
nothing of devloop's. Everything is mounted read-only, so the server has nothing to forbid.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import BinaryIO

MARK = "devloop-files-session"


def stay(first: float, idle: float) -> None:
    """PID 1: end when no session has come for `first` seconds, or none is left for `idle` seconds."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    last, patience = time.monotonic(), first
    while time.monotonic() - last < patience:
        time.sleep(1)
        with contextlib.suppress(OSError):
            if any(_is_session(each) for each in os.listdir("/proc") if each.isdecimal()):  # noqa: PTH208
                last, patience = time.monotonic(), idle


def _is_session(process: str) -> bool:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:  # noqa: PTH123
            return MARK.encode() in file.read().split(b"\0")  # an argument of its own, not its source
    except OSError:
        return False


async def serve(authorized: str) -> None:
    """SSH with SFTP alone on standard input and output; the first line out is the server's key.

    asyncssh serves sockets, so the bytes make a step over the loopback. Other processes of the pod could
    connect there too; they lack the one key that is let in.
    """
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    listener = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[key],
        authorized_client_keys=asyncssh.import_authorized_keys(authorized),
        sftp_factory=True,
        allow_scp=False,
        password_auth=False,
        kbdint_auth=False,
        gss_host=None,
        agent_forwarding=False,
        encryption_algs=["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"],
        compression_algs=["none"],
        line_editor=False,
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.get_port())
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader(1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    out = sys.stdout.buffer
    _put(out, key.export_public_key().strip() + b"\n")

    async def there() -> None:
        while data := await stdin.read(1 << 18):
            writer.write(data)
            await writer.drain()

    async def back() -> None:
        while data := await reader.read(1 << 18):
            await loop.run_in_executor(None, _put, out, data)

    tasks = [asyncio.ensure_future(there()), asyncio.ensure_future(back())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    os._exit(0)


def _put(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.flush()

"""What a command at the other end of an SSH connection says has a bound, and the connection goes on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncssh
import pytest

from devloop.remote.said import SAID_BYTES, json_of, said

pytestmark = pytest.mark.slow


@pytest.fixture
async def connection() -> AsyncIterator[asyncssh.SSHClientConnection]:
    key = asyncssh.generate_private_key("ssh-ed25519")

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    async def answer(process: asyncssh.SSHServerProcess[bytes]) -> None:
        match process.command:
            case "endless":
                with contextlib.suppress(OSError):  # its client has closed it
                    while not process.stdout.is_closing():
                        process.stdout.write(b"x" * 65536)
                        await process.stdout.drain()
            case "whole":
                process.stdout.write(b"x" * SAID_BYTES)
        process.exit(3 if process.command == "fails" else 0)

    options: dict[str, Any] = {"server_factory": Server, "server_host_keys": [key], "encoding": None}
    server = await asyncssh.listen("127.0.0.1", 0, process_factory=answer, **options)
    try:
        port = server.sockets[0].getsockname()[1]
        async with asyncssh.connect("127.0.0.1", port, known_hosts=None, config=None, username="u") as made:
            yield made
    finally:
        server.close()


async def test_it_has_a_bound(connection: asyncssh.SSHClientConnection) -> None:
    with pytest.raises(ValueError, match="no end"):
        await said(connection, "endless")
    assert await said(connection, "whole") == "x" * SAID_BYTES
    with pytest.raises(ValueError, match="code 3"):
        await said(connection, "fails")
    assert await said(connection, "fails", check=False) == ""


@pytest.mark.parametrize("text", ["", "5", "[]", "{", pytest.param("[" * 100_000, id="deep")])
def test_what_is_no_object_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"object|nested|Expecting"):
        json_of(text)

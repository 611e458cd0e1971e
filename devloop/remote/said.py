"""What a command at the other end of an SSH connection says: a few words, whoever answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncssh

SAID_BYTES = 64 << 10


def json_of(text: str) -> dict[str, Any]:
    """An object. Raises ValueError if it is none."""
    try:
        found = json.loads(text)
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found


async def said(connection: asyncssh.SSHClientConnection, command: str, *, check: bool = True) -> str:
    """Its standard output, which may have 64 KiB. Raises asyncssh.Error; ValueError if it is more, or if the command
    fails and that is to be checked.

    Not `connection.run`: that keeps whatever comes.
    """
    process = await connection.create_process(command, encoding=None)
    try:
        found = b""
        while part := await process.stdout.read(SAID_BYTES + 1 - len(found)):
            found += part
        if len(found) > SAID_BYTES:
            raise ValueError("there is no end to the answer")
        if check:
            await process.wait_closed()
            if process.exit_status:
                raise ValueError(f"it ended with code {process.exit_status}")
        return found.decode("utf-8", "replace")
    finally:
        process.close()

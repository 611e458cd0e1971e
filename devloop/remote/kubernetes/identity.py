"""A developer's key on this machine, by which agents know them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devloop.remote.link import PermanentError
from devloop.user import login

if TYPE_CHECKING:
    import asyncssh


@dataclass(frozen=True, slots=True)
class Identity:
    """A developer's key on this machine."""

    key: asyncssh.SSHKey
    name: str
    """As the agent's log and `devloop agent status` show it: user@host."""


def user_name() -> str:
    """Who this is, for people: user@host."""
    return f"{login()}@{socket.gethostname()}"


def identity(file: Path) -> Identity:
    """Read the key, or make it: ed25519, mode 0600, for this machine and user alone. Blocking; RemoteError."""
    import asyncssh

    name = user_name()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            made = asyncssh.generate_private_key("ssh-ed25519")
            # Two engines may start at once: whoever links first has made the key.
            draft = file.with_name(f"{file.name}.{os.getpid()}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(made.export_private_key())
            try:
                os.link(draft, file)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return Identity(asyncssh.read_private_key(file), name)
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as problem:
        raise PermanentError(
            f"the key can't be used: {problem}", where=str(file), hint="Delete it: a new one is made."
        ) from problem

"""The agent in this process, for tests that need no cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from devloop.agent import server
from devloop.remote.life import Dial, LiveLink

from .admitted import Admitted


@asynccontextmanager
async def an_agent(
    folder: Path, *, direct: int | None = None, envoy: str = ""
) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """A server with one developer's key: its port, and how asyncssh connects to it."""
    host, ada = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (folder / "host_key").write_bytes(host.export_private_key("openssh"))
    options: dict[str, Any] = {
        "username": "ada",
        "client_keys": [ada],
        "known_hosts": ([host.convert_to_public()], [], []),
        "config": None,
        "agent_path": None,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "cluster_api", lambda: None)
        more: dict[str, Any] = {"direct": direct, "state": folder / "state", "envoy": envoy}
        async with server.serve(folder, 0, admission=Admitted(ada), **more) as port:
            yield port, options


@asynccontextmanager
async def live(dial: Dial) -> AsyncIterator[LiveLink]:
    """A link to it, connected."""
    link = LiveLink("agent", "here", dial)
    link.start()
    try:
        await link.ready(10)
        yield link
    finally:
        await link.close()

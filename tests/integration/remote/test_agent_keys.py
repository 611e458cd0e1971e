"""Who the agent lets in: keys of the mounted Secret, and those that are in the Secret alone so far."""

from __future__ import annotations

import asyncio
import base64
import socket
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from devloop.agent import server

pytestmark = pytest.mark.slow


class Secret:
    """The API, as far as the agent asks it: one Secret, with this developer's key."""

    namespace = "shop"

    def __init__(self, key: asyncssh.SSHKey) -> None:
        self.line = key.export_public_key("openssh")

    def request(self, verb: str, kind: str, name: str) -> dict[str, Any]:
        assert (verb, kind, name) == ("GET", "secrets", "devloop-agent")
        return {"data": {"ada.pub": base64.b64encode(self.line).decode()}}


async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "cluster_api", lambda: None)
    (tmp_path / "host_key").write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        before = psutil.Process().num_fds()
        with pytest.raises(server.AgentError, match=f"127.0.0.1:{port}"):
            async with server.serve(tmp_path, port):
                pass
        await asyncio.sleep(0)
        assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("others", [0, 1])
async def test_a_key_that_the_volume_does_not_show_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, others: int
) -> None:
    """The kubelet shows it within a minute or so; nobody waits for that, be they the first or not."""
    host, ada, ben, eve = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(4))
    (tmp_path / "host_key").write_bytes(host.export_private_key("openssh"))
    if others:
        (tmp_path / "ben.pub").write_bytes(ben.export_public_key("openssh"))
    monkeypatch.setattr(server, "cluster_api", lambda: Secret(ada))
    async with server.serve(tmp_path, 0) as port:

        async def enter(key: asyncssh.SSHKey) -> None:
            async with asyncssh.connect(
                *("127.0.0.1", port),
                username="ada",
                client_keys=[key],
                known_hosts=([host.convert_to_public()], [], []),
                config=None,
                agent_path=None,
            ):
                pass

        await enter(ada)
        if others:
            await enter(ben)
        with pytest.raises(asyncssh.PermissionDenied):
            await enter(eve)

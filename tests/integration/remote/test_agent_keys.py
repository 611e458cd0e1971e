"""Who the agent lets in: keys of the mounted Secret, and those that are in the Secret alone so far."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from devloop.agent import server

from .openssh import free_port

pytestmark = pytest.mark.slow


class Secret:
    """The API, as far as the agent asks it: one Secret, with this developer's key."""

    namespace = "shop"

    def __init__(self, key: asyncssh.SSHKey) -> None:
        self.line = key.export_public_key("openssh")

    def request(self, verb: str, kind: str, name: str) -> dict[str, Any]:
        assert (verb, kind, name) == ("GET", "secrets", "devloop-agent")
        return {"data": {"ada.pub": base64.b64encode(self.line).decode()}}


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
    port = free_port()
    async with server.serve(tmp_path, port):

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

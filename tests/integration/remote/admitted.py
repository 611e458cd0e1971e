"""Who an agent in a test lets in: keys that the test names, where no cluster is asked for entries."""

from __future__ import annotations

import asyncssh


class Admitted:
    """These keys; see `devloop.agent.authorized.Admission`."""

    def __init__(self, *keys: asyncssh.SSHKey) -> None:
        self.keys = {each.public_data for each in keys}

    async def admits(self, public: bytes, username: str) -> str:
        """See Admission."""
        return "here" if public in self.keys else ""

    def entered(self, entry: str) -> None:
        """See Admission."""

    def left(self, entry: str) -> None:
        """See Admission."""

    async def goodbye(self, entry: str) -> None:
        """See Admission."""

    async def joining(self) -> bool:
        """See Admission."""
        return False

    async def keep(self) -> None:
        """See Admission."""

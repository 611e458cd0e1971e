"""A real OpenSSH server on the loopback, for the tests of this machine's links."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs
from tests.ports import free_port

from .contract import ended


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0


@dataclass
class Sshd:
    """A server on the loopback, and a client's files for it."""

    folder: Path
    port: int
    process: asyncio.subprocess.Process

    @property
    def config(self) -> Path:
        return self.folder / "config"

    def write_config(self, *more: str, known_hosts: str | None = None) -> Path:
        host_key = (self.folder / "host.pub").read_text()
        (self.folder / "known_hosts").write_text(
            known_hosts if known_hosts is not None else f"[127.0.0.1]:{self.port} {host_key}"
        )
        self.config.write_text(
            "Host bastion\n  HostName 127.0.0.1\n"
            f"  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.folder / 'id'}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder / 'known_hosts'}\n" + "".join(f"{each}\n" for each in more)
        )
        return self.config

    def children(self) -> list[int]:
        """The processes that serve one connection each."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(each) for each in found]


@pytest.fixture
async def sshd(tmp_path: Path) -> AsyncIterator[Sshd]:
    server_program = needs.program("sshd")
    for name in ("host", "id"):
        await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
    shutil.copy(tmp_path / "id.pub", tmp_path / "authorized_keys")
    if os.geteuid() == 0:
        # sshd's own, for its privilege separation.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # noqa: ASYNC240
    port = free_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path / 'host'}\n"
        f"AuthorizedKeysFile {tmp_path / 'authorized_keys'}\nPidFile none\nUsePAM no\nStrictModes no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        "AllowTcpForwarding local\nMaxStartups 100\nMaxSessions 2000\nLogLevel ERROR\n"
    )
    process = await asyncio.create_subprocess_exec(
        server_program, "-D", "-e", "-f", str(tmp_path / "sshd_config"), stderr=asyncio.subprocess.DEVNULL
    )
    server = Sshd(tmp_path, port, process)
    server.write_config()
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None
                await asyncio.sleep(0.01)
            else:
                await ended(writer)
                break
    yield server
    for child in server.children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    process.terminate()
    await process.wait()

"""The far side of `test_denied.py`: in a network namespace of its own, where metadata services answer at their real
addresses, an agent's SSH server forwards for a developer who asks for them in every way.

    denied_inside.py [ALLOWED]      prints what has come of each, as JSON; ALLOWED: as DEVLOOP_AGENT_ALLOW
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import cast

import asyncssh
import pytest

from devloop.agent import server
from devloop.agent.datagrams import COMMAND, DATA, OPEN, Record, Records, destination, written
from devloop.agent.destinations import Destinations

from .admitted import Admitted

ADDRESSES = ("169.254.169.254", "169.254.20.10", "100.100.100.200", "10.96.0.1", "fd00:ec2::254", "fd00:96::1")
RESOLV_CONF = "nameserver 169.254.20.10\n"  # NodeLocal DNSCache


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"credentials")
    writer.close()


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(b"credentials", addr)


async def by_channel(connection: asyncssh.SSHClientConnection, host: str, port: int) -> str:
    try:
        reader, writer = await connection.open_connection(host, port)
    except asyncssh.ChannelOpenError as problem:
        prohibited = problem.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
        return f"{'prohibited' if prohibited else problem.code}: {problem.reason}"
    said: bytes = await reader.read()
    writer.close()
    return said.decode()


async def by_datagrams(connection: asyncssh.SSHClientConnection, host: str, port: int) -> str:
    process = await connection.create_process(COMMAND, encoding=None)
    records = Records()
    process.stdin.write(written(Record(OPEN, 1, destination(host, port))) + written(Record(DATA, 1, b"?")))
    async with asyncio.timeout(10):
        while True:
            for each in records.read(await process.stdout.read(1 << 16)):
                process.close()
                return each.body.decode()


async def main(allowed: str) -> dict[str, str]:
    destinations = Destinations.of(allowed, RESOLV_CONF)
    loop = asyncio.get_running_loop()
    for port in (80, 53):
        for address in ("0.0.0.0", "::"):
            await asyncio.start_server(answer, address, port)
        for address in (each for each in (*ADDRESSES, "127.0.0.1") if ":" not in each):  # who is asked is who answers
            await loop.create_datagram_endpoint(Echo, (address, port))
    key, mine = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        (folder / "host_key").write_bytes(key.export_private_key("openssh"))
        hosts = folder / "hosts"
        hosts.write_text("169.254.169.254 metadata.example.com\n10.96.0.1 api.example.com\n127.0.0.1 localhost\n")
        mount = await asyncio.create_subprocess_exec("mount", "--bind", str(hosts), "/etc/hosts")
        assert await mount.wait() == 0
        patch.setattr(server, "cluster_api", lambda: None)
        async with server.serve(folder, 0, destinations=destinations, admission=Admitted(mine)) as port:
            options = {"client_keys": [mine], "known_hosts": None, "config": None, "agent_path": None}
            async with asyncssh.connect("127.0.0.1", port, username="me", **options) as connection:
                for host in (
                    *(*ADDRESSES, "metadata.example.com", "api.example.com", "localhost", "2852039166", "0xa9fea9fe"),
                    *("::ffff:169.254.169.254", "::ffff:10.96.0.1", "0.0.0.0", "::", "127.1"),
                ):
                    found[f"tcp {host}:80"] = await by_channel(connection, host, 80)
                for host in (*ADDRESSES[:-1], "::ffff:169.254.169.254", "127.0.0.1", "::1"):
                    found[f"udp {host}:80"] = await by_datagrams(connection, host, 80)
                for host in ("169.254.20.10", "169.254.169.254"):
                    found[f"tcp {host}:53"] = await by_channel(connection, host, 53)
                    found[f"udp {host}:53"] = await by_datagrams(connection, host, 53)
                found["tcp its own port"] = await by_channel(connection, "127.0.0.1", port)
    return found


def prepare() -> None:
    """Whoever connects to one of these addresses gets an answer from here, and not as from one of its own."""
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    for each in ADDRESSES:
        route = (f"{each}/128",) if ":" in each else (f"{each}/32", "src", "127.0.0.1")
        add = ("ip", "route", "add", "local", route[0], "dev", "lo", *route[1:])
        subprocess.run(("ip", "-6", *add[1:]) if ":" in each else add, check=True)


if __name__ == "__main__":
    prepare()
    print(json.dumps(asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else ""))), flush=True)
    os._exit(0)

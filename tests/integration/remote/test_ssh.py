"""The SSH link keeps the contract at a real OpenSSH server, and reads what OpenSSH's client reads."""

from __future__ import annotations

import asyncio
import getpass
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from devloop.remote.life import LiveLink
from devloop.remote.link import NameLookupError, OpenError, PermanentError, Phase, Refusal, Resolver
from devloop.remote.ssh import ssh_link
from tests.ports import free_port

from . import target
from .contract import LinkContract, Rig, ended, until
from .openssh import Sshd, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
async def link(sshd: Sshd) -> AsyncIterator[LiveLink]:
    made = ssh_link("bastion", config=[sshd.config])
    made.start()
    yield made
    await made.close()


class TestSsh(LinkContract):
    @pytest.fixture
    async def rig(self, sshd: Sshd, link: LiveLink, target_ports: tuple[int, ...]) -> Rig:
        await link.ready(10)

        async def cut() -> None:
            for child in sshd.children():
                os.kill(child, signal.SIGKILL)

        return Rig(link, "127.0.0.1", target_ports, free_port(), "nobody.invalid", cut)


async def test_the_hosts_resolver_is_what_its_resolv_conf_says(link: LiveLink) -> None:
    expected = Resolver.parse(Path("/etc/resolv.conf").read_text())  # noqa: ASYNC240
    if not expected.nameservers:
        with pytest.raises(NameLookupError):
            await link.resolver()
    else:
        assert await link.resolver() == expected


async def test_an_unknown_host_key_is_refused_for_good_and_said(sshd: Sshd) -> None:
    made = ssh_link("bastion", config=[sshd.write_config(known_hosts="")])
    made.start()
    with pytest.raises(PermanentError, match="host key"):
        await made.ready(10)
    assert made.state.phase is Phase.FAILED
    with pytest.raises(OpenError) as refused:
        await made.open("127.0.0.1", 1)
    assert refused.value.refusal is Refusal.LINK_DOWN
    # The user has run `ssh bastion` meanwhile.
    sshd.write_config()
    made.wake()
    await until(made, lambda state: state.phase is Phase.CONNECTED)
    await made.close()


async def test_a_key_that_is_not_known_there_is_refused_for_good(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "authorized_keys").write_text("")
    made = ssh_link("bastion", config=[sshd.config])
    made.start()
    with pytest.raises(PermanentError, match="key"):
        await made.ready(10)
    await made.close()


async def test_proxyjump_leads_through_another_host(sshd: Sshd, target_ports: tuple[int, ...]) -> None:
    config = sshd.write_config(
        "Host inner",
        f"  HostName 127.0.0.1\n  Port {sshd.port}\n  User {getpass.getuser()}\n  ProxyJump bastion",
        f"  IdentityFile {sshd.folder / 'id'}\n  UserKnownHostsFile {sshd.folder / 'known_hosts'}",
    )
    made = ssh_link("inner", config=[config])
    made.start()
    await made.ready(10)
    assert len(sshd.children()) == 2
    reader, writer = await made.open("127.0.0.1", target_ports[target.CLOSER])
    assert await reader.read() == b"bye"
    await ended(writer)
    await made.close()


@pytest.mark.parametrize("proxy", ["ProxyJump bastion", "ProxyCommand ssh -q -F {config} -W %h:%p bastion"])
async def test_much_passes_through_another_host_and_nothing_is_lost(
    sshd: Sshd, target_ports: tuple[int, ...], proxy: str
) -> None:
    config = sshd.write_config(
        "Host inner",
        f"  HostName 127.0.0.1\n  Port {sshd.port}\n  User {getpass.getuser()}",
        f"  {proxy.format(config=sshd.config)}",
        f"  IdentityFile {sshd.folder / 'id'}\n  UserKnownHostsFile {sshd.folder / 'known_hosts'}",
    )
    made = ssh_link("inner", config=[config])
    made.start()
    await made.ready(10)

    async def talk(number: int) -> None:
        reader, writer = await made.open("127.0.0.1", target_ports[target.ECHO])
        sent = target.block(number) * 8
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        await ended(writer)

    await asyncio.gather(*map(talk, range(20)))
    await made.close()


async def test_the_agents_key_is_used(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "agent.sock"
    agent = await asyncio.create_subprocess_exec(
        "ssh-agent", "-D", "-a", str(address), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(5):
            while not address.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        await run("ssh-add", "-q", str(tmp_path / "id"))
        (tmp_path / "id").rename(tmp_path / "elsewhere")
        config = sshd.write_config()
        config.write_text("\n".join(line for line in config.read_text().splitlines() if "Identit" not in line) + "\n")
        made = ssh_link("bastion", config=[config])
        made.start()
        await made.ready(10)
        await made.close()
    finally:
        agent.terminate()
        await agent.wait()


async def test_a_server_that_forbids_forwarding_is_named(sshd: Sshd, tmp_path: Path) -> None:
    key = (tmp_path / "id.pub").read_text()
    (tmp_path / "authorized_keys").write_text(f"no-port-forwarding {key}")
    made = ssh_link("bastion", config=[sshd.config])
    made.start()
    with pytest.raises(OpenError) as refused:
        await made.open("127.0.0.1", 22)
    assert refused.value.refusal is Refusal.PROHIBITED
    assert "AllowTcpForwarding" in str(refused.value)
    await made.close()


async def test_a_server_that_is_not_there_is_tried_again(sshd: Sshd) -> None:
    made = ssh_link("bastion", config=[sshd.config])
    for child in [sshd.process.pid]:
        os.kill(child, signal.SIGSTOP)  # takes connections and says nothing
    made.start()
    await asyncio.sleep(0.2)
    assert made.state.phase is Phase.CONNECTING
    os.kill(sshd.process.pid, signal.SIGCONT)
    await made.ready(10)
    await made.close()

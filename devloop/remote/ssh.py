"""Any host with an SSH server as a remote: a bastion, a machine that runs compose.

Everything that OpenSSH's client reads is honoured by asyncssh: ~/.ssh/config (HostName, User, Port, IdentityFile,
ProxyJump, ProxyCommand, HostKeyAlias, Ciphers, …), known_hosts, and the agent at SSH_AUTH_SOCK. A host key that is
not in known_hosts is refused: devloop asks no questions, `ssh HOST` does once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from devloop.errors import RemoteError

from .imports import imported
from .life import HOLD_SECONDS, LiveLink
from .link import PermanentError, Resolver

CONNECT_SECONDS = 10


def ssh_link(
    host: str,
    *,
    port: int | None = None,
    user: str | None = None,
    config: Sequence[Path] | None = None,
    resolver: Resolver | None = None,
    hold: float = HOLD_SECONDS,
) -> LiveLink:
    """A link to `host`, a name as `ssh` takes it.

    `config` are the files to read in place of ~/.ssh/config; `resolver` replaces what the host's resolv.conf says.
    """

    async def dial(tell: Callable[[str], None]) -> Any:
        await imported("devloop.remote.sshcarrier")
        from .sshcarrier import SshCarrier

        options: dict[str, Any] = {}
        if port is not None:
            options["port"] = port
        if user is not None:
            options["username"] = user
        if config is not None:
            options["config"] = [str(each) for each in config]
        connection = await connect(host, where=host, **options)
        return SshCarrier(connection, "ssh", host, resolver=resolver)

    return LiveLink("ssh", host, dial, hold=hold)


async def connect(host: str, *, where: str, **options: Any) -> Any:
    """`asyncssh.connect` with devloop's settings; a PermanentError is what trying again does not change."""
    import asyncssh

    from devloop.agent.packets import REKEY_BYTES

    from .sshcarrier import CIPHERS, KEEPALIVE_COUNT, KEEPALIVE_SECONDS, Client

    try:
        configured = await asyncssh.SSHClientConnectionOptions.construct(host=host, **_only_config(options))
        if not configured.config.get("Ciphers"):
            options["encryption_algs"] = CIPHERS
        if not configured.config.get("RekeyLimit"):
            options["rekey_bytes"] = REKEY_BYTES
        return await asyncssh.connect(
            host,
            client_factory=Client,
            compression_algs=["none"],
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVE_COUNT,
            connect_timeout=CONNECT_SECONDS,
            login_timeout=CONNECT_SECONDS,
            **options,
        )
    except asyncssh.HostKeyNotVerifiable as problem:
        raise PermanentError(
            f"its host key is not the one that is known: {problem.reason}",
            where=where,
            hint=f"If the host is new, run `ssh {host}` once and compare the fingerprint.",
        ) from problem
    except asyncssh.PermissionDenied as problem:
        raise PermanentError(
            f"it lets no key of yours in: {problem.reason}",
            where=where,
            hint=f"`ssh {host}` must work without a password: use ssh-agent, or IdentityFile in ~/.ssh/config.",
        ) from problem
    except (asyncssh.ConfigParseError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as problem:
        raise PermanentError(str(problem), where=where) from problem
    except asyncssh.Error as problem:
        raise RemoteError(f"the SSH connection was not made: {problem}", where=where) from problem
    except TimeoutError as problem:
        raise RemoteError(f"no answer within {CONNECT_SECONDS} s", where=where) from problem
    except (OSError, ValueError) as problem:
        raise RemoteError(f"it can't be reached: {problem}", where=where) from problem


def _only_config(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in ("config", "port", "username")}

"""The agent's SSH server: a developer's way to every address that a pod of this namespace can reach.

It listens on the pod's loopback alone, so that a port-forward, and with it the API server's own
authentication and audit log, stands before every client; who has come that way may come by the pod's own address as
well (`direct.py`). Behind that only a public key opens it, for which its owner has put an entry beside the agent. It
forwards connections (RFC 4254, 7.2, "direct-tcpip"), beside itself too (`lanes.py`), and datagrams (`datagrams.py`),
answers questions about itself, attaches a developer's services (`desk.py`) and refuses all else: no shell, no file
transfer, no agent or X11 forwarding, no listening ports.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncssh

from .attachments import Attachments
from .authorized import Admission, Authorized
from .datagrams import COMMAND as DATAGRAMS
from .datagrams import Datagrams
from .desk import Desk
from .destinations import EVERYWHERE, Destinations
from .direct import COMMAND as DIRECT
from .direct import Direct
from .forward import Connection
from .hostkey import HostKeyError, host_key
from .inbound import COMMAND as INBOUND
from .inbound import ToEngine
from .lanes import COMMAND as LANES
from .lanes import Lanes
from .packets import REKEY_BYTES
from .paths import COMMAND, GOODBYE, SOFTWARE
from .presence import Presence, Seat, cluster_api
from .strangers import Stranger, Strangers
from .tasks import background

log = logging.getLogger("agent")

LOOPBACK = "127.0.0.1"
# AES-GCM first: with the processor's own instructions it is the fastest that OpenSSH has too.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")
# A laptop that sleeps or loses its network says nothing. Three of these without an answer end its
# connection, and with it the sockets that it holds open here.
KEEPALIVE_SECONDS = 5
LOGIN_SECONDS = 20
LOOK_UPS = 6
"""So many keys of one connection are looked up, as with OpenSSH's MaxAuthTries."""
STRANGERS = 128
"""So many may not have logged in yet; all come from the loopback, or have shown a ticket. See `strangers.py`."""


class AgentError(Exception):
    """The agent can't serve: which file or port, and why."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What all connections share. `attachments`: None where nothing can be attached."""

    admission: Admission
    presence: Presence
    lanes: Lanes
    direct: Direct
    attachments: Attachments | None
    strangers: Strangers
    """Who has come to the loopback's port and not logged in yet."""
    destinations: Destinations


class Developer(asyncssh.SSHServer):
    """One developer's connection. `seat`: that of the one beside which it comes; None: it is the first."""

    def __init__(self, parts: Parts, seat: Seat | None = None) -> None:
        self.parts = parts
        self.seat = seat or Seat(parts.presence)
        if seat is None:
            self.seat.given_back = self._given_back
        self.connection: Connection | None = None
        self.name = "nobody"
        self.entered = False
        self._offered: tuple[asyncssh.SSHKey, str] | None = None
        """The key that was asked about last, and its entry."""
        self._known: dict[tuple[str, bytes], str] = {}
        self._stranger: Stranger | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Keep the connection, for what the authentication has to tell it."""
        self.connection = Connection(conn, self.parts.destinations)
        self._stranger = self.parts.strangers.arrived("", conn.abort)

    def begin_auth(self, username: str) -> bool:
        """The user name says which entry to look for, and what the developer calls themself; the key alone decides."""
        self.name = username.rpartition("/")[0] or username
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys are asked for, and nothing else."""
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether this key has an entry, as the API has it now; beside another connection, whether it is its key."""
        public = key.public_data
        if self.seat.key:
            if public != self.seat.key:
                return False
            entry = self.seat.entry
        else:
            if (username, public) not in self._known:
                if len(self._known) >= LOOK_UPS:
                    return False
                self._known[username, public] = await self.parts.admission.admits(public, username)
            entry = self._known[username, public]
            if not entry:
                return False
        # asyncssh asks this right before it checks a signature: the last one is the one that was proven.
        self._offered = key, entry
        return True

    def auth_completed(self) -> None:
        """Say who is there now."""
        assert self.connection is not None and self._offered is not None
        self._no_stranger()
        key, entry = self._offered
        self.connection.key = key.get_fingerprint()
        self.entered = True
        if not self.seat.key:
            self.seat.key, self.seat.entry = key.public_data, entry
            self.parts.admission.entered(entry)
        self.seat.joined()
        log.info("%r is connected", self.name)

    def _given_back(self) -> None:
        self.parts.direct.forget(self.seat)
        self.parts.admission.left(self.seat.entry)

    def _no_stranger(self) -> None:
        if self._stranger is not None:
            self._stranger.known()

    def session_requested(self) -> Any:
        """A few questions and attachments, nothing else."""
        assert self.connection is not None
        return Question(self.parts, self.seat, self.connection)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """Forward to whatever this pod may reach, by network policies, but for what `destinations.py` denies."""
        assert self.connection is not None
        return self.connection.forward(dest_host, dest_port, orig_port)

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        """Refuse to listen: nothing in the cluster reaches the developer by this way."""
        return False

    def unix_server_requested(self, listen_path: str) -> Any:
        """Let Envoy's connections for an attachment be handed to this developer; no socket of that name is made."""
        if self.parts.attachments is None or not listen_path.startswith("devloop/"):
            return False
        return Handed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say who has gone."""
        self._no_stranger()
        if self.connection is not None:
            self.parts.lanes.forget(self.connection)
        if self.entered:
            self.entered = False
            self.seat.left()
            log.info("%r is gone%s", self.name, f": {exc}" if exc else "")


class Handed(asyncssh.SSHListener):
    """What asyncssh keeps for a path that a developer listens on: the agent listens itself (`uplink.py`)."""

    def close(self) -> None:
        """There is nothing to close."""

    async def wait_closed(self) -> None:
        """The same."""


class Question(asyncssh.SSHServerSession[str]):
    """A session that answers one of `COMMANDS` or which other ways there are, is a desk, or carries datagrams."""

    def __init__(self, parts: Parts, seat: Seat, connection: Connection) -> None:
        self.parts = parts
        self.seat = seat
        self.connection = connection
        self.desk: Desk | None = None
        self.datagrams: Datagrams | ToEngine | None = None
        self.channel: asyncssh.SSHServerChannel[str] | None = None
        self.answer = ""
        self._asking: Callable[[], Awaitable[str]] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[str]) -> None:
        """Keep the channel."""
        self.channel = chan

    def exec_requested(self, command: str) -> bool:
        """Only what is listed."""
        parts = self.parts
        if command == COMMAND and parts.attachments is not None:
            self.desk = Desk(parts.attachments, self.connection, self.channel)
        elif command == DATAGRAMS and self.channel is not None:
            self.channel.set_encoding(None)
            self.datagrams = Datagrams(self.channel, parts.destinations)
        elif command == INBOUND and parts.attachments is not None and self.channel is not None:
            self.channel.set_encoding(None)
            self.datagrams = parts.attachments.inbound.session(self.connection, self.channel)
        elif command == LANES:
            self.answer = parts.lanes.answer(self.connection)
        elif command == DIRECT:
            self.answer = parts.direct.answer(self.seat)
        elif command == GOODBYE:
            self._asking = self._goodbye
        elif (ask := COMMANDS.get(command)) is not None:
            self.answer = ask(parts.presence)
        else:
            return False
        return True

    def session_started(self) -> None:
        """Say it."""
        assert self.channel is not None
        if self.desk is not None:
            self.desk.begin()
            return
        if self.datagrams is not None:
            return
        if self._asking is not None:
            background(self._ask(self._asking), name="answer")
            return
        self._say(self.answer)

    async def _ask(self, asking: Callable[[], Awaitable[str]]) -> None:
        self._say(await asking())

    def _say(self, answer: str) -> None:
        assert self.channel is not None
        if not self.channel.is_closing():
            self.channel.write(answer)
            self.channel.exit(0)

    async def _goodbye(self) -> str:
        """Forget the asker's entry; how many are here, the asker among them, and those who are just joining."""
        parts = self.parts
        _, joining = await asyncio.gather(parts.admission.goodbye(self.seat.entry), parts.admission.joining())
        return str(parts.presence.clients + parts.presence.busy() + joining)

    def data_received(self, data: str, datatype: int | None = None) -> None:
        """Only a desk and who carries datagrams are spoken to."""
        if self.desk is not None:
            self.desk.received(data)
        elif self.datagrams is not None:
            self.datagrams.received(cast(bytes, data))  # its channel has no encoding

    def pause_writing(self) -> None:
        """The channel's window is used up."""
        if self.desk is not None:
            self.desk.stuck(True)
        elif self.datagrams is not None:
            self.datagrams.stuck(True)

    def resume_writing(self) -> None:
        """There is room again."""
        if self.desk is not None:
            self.desk.stuck(False)
        elif self.datagrams is not None:
            self.datagrams.stuck(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """The session is over, or the developer's whole connection."""
        if self.desk is not None:
            self.desk.ended()
        elif self.datagrams is not None:
            self.datagrams.ended()


def _resolv_conf(presence: Presence) -> str:
    return Path("/etc/resolv.conf").read_text()


def _clients(presence: Presence) -> str:
    return str(presence.clients + presence.busy())


COMMANDS: dict[str, Callable[[Presence], str]] = {
    # How names are resolved here. The same words as at a host with a shell.
    "cat /etc/resolv.conf": _resolv_conf,
    # How many are connected, the one who asks among them.
    "clients": _clients,
}


def _settings(key: asyncssh.SSHKey) -> dict[str, Any]:
    """How asyncssh serves, at the loopback and at the pod's address."""
    return {
        "server_host_keys": [key],
        "server_version": SOFTWARE,
        "encryption_algs": CIPHERS,
        "compression_algs": ["none"],
        "public_key_auth": True,
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "gss_host": None,
        "agent_forwarding": False,
        "x11_forwarding": False,
        "allow_pty": False,
        "sftp_factory": None,
        "allow_scp": False,
        "keepalive_interval": KEEPALIVE_SECONDS,
        "rekey_bytes": REKEY_BYTES,
        "login_timeout": LOGIN_SECONDS,
    }


@asynccontextmanager
async def serve(
    keys: Path,
    port: int,
    linger: float = 0,
    *,
    direct: int | None = None,
    state: Path | None = None,
    envoy: str = "",
    destinations: Destinations = EVERYWHERE,
    runner: Path | None = None,
    admission: Admission | None = None,
) -> AsyncIterator[int]:
    """Listen on the loopback while the context lasts; gives the port, which matters when `port` is 0.

    `keys` is the folder of the host key, which is made if there is none. `linger`: see Presence. `direct`: the port for
    direct connections; None: there are none. With `envoy`, its program, developers can attach services; `state` is a
    folder for its files; `runner` the socket of who runs it, if that is another container. `destinations`: where
    connections may lead. `admission`: who is let in; None: those who have an entry in the cluster. Raises AgentError.
    """
    try:
        key = await asyncio.to_thread(host_key, keys)
    except HostKeyError as problem:
        raise AgentError(str(problem)) from problem
    api = cluster_api()
    if admission is None:
        if api is None:
            raise AgentError("the pod has no service account, so nobody's key can be looked up")
        admission = Authorized(api)
    async with AsyncExitStack() as stack:
        presence = Presence(api, linger)
        presence.joining = admission.joining
        stack.callback(presence.close)
        keeping = background(admission.keep(), name="keys")
        stack.callback(keeping.cancel)
        attachments: Attachments | None = None
        if envoy and state is not None:
            attachments = Attachments(api, state, envoy, destinations, runner)
            presence.busy = lambda: attachments.busy
            await attachments.start()
            stack.push_async_callback(attachments.close)
        lanes = Lanes()
        stack.callback(lanes.close)
        settings = _settings(key)

        async def login(sock: socket.socket, seat: Seat) -> None:
            # It ends with the last of its developer's connections at the latest; nothing here waits for it.
            await asyncssh.run_server(sock, server_factory=lambda: Developer(parts, seat), **settings)

        ways = Direct(direct, login)
        stack.push_async_callback(ways.close)
        strangers = Strangers(total=STRANGERS, each=STRANGERS, seconds=LOGIN_SECONDS)
        parts = Parts(admission, presence, lanes, ways, attachments, strangers, destinations)
        try:
            listener = await asyncssh.listen(LOOPBACK, port, server_factory=lambda: Developer(parts), **settings)
            await stack.enter_async_context(listener)
            # After the SSH server, whose port may be anybody's choice: this one is any that is free.
            await lanes.listen(LOOPBACK)
        except OSError as problem:
            raise AgentError(f"{LOOPBACK}:{port}: {problem.strerror or problem}") from problem
        bound = listener.get_port()
        log.info("listening on %s:%d", LOOPBACK, bound)
        yield bound
        if attachments is not None:
            await attachments.fail_open()

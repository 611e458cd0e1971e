"""The network of a service that has the host's: its ports, and where its volumes lie. For the ways `ports` and `hosts`.

Where others are, from there, is the same for all services of a project; see `devloop.engine.ways`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from devloop.dial import connect
from devloop.net.listeners import Listener, datagram_listeners, diag_socket, listeners, waiting
from devloop.net.mounts import Bind
from devloop.net.ports import Rewritten, rewrite_paths
from devloop.net.publish import Gate, Publisher
from devloop.relay import Relays

VOLUMES = "DEVLOOP_VOLUMES"
"""The folder below which a service finds its volumes at their paths."""
_LOOPBACK = ("127.0.0.1", "::1")


class HostInner:
    """A service's ports on the host's loopback: what its `Publisher` connects to."""

    def __init__(self) -> None:
        self._diag = diag_socket() if sys.platform == "linux" else None
        self._asked: set[int] = set()

    async def connect(self, port: int, address: str = "127.0.0.1") -> socket.socket:
        """See `devloop.net.publish.Inner`."""
        self._asked.add(port)
        return await connect(address, port)

    def listeners(self) -> Iterable[Listener]:
        """See `Inner`. Where the kernel can't be asked, only ports that were connected to are looked at."""
        if self._diag is not None:
            return listeners(self._diag)
        return [Listener(port, address) for port in self._asked for address in _LOOPBACK if _taken(address, port)]

    def datagram_listeners(self) -> Iterable[Listener]:
        """See `Inner`. Raises OSError where the kernel can't be asked."""
        if self._diag is None:
            raise OSError(errno.ENOSYS, "this system does not tell")
        return datagram_listeners(self._diag)

    def takes_datagrams(self, listener: Listener) -> bool:
        """See `Inner`: they come from the loopback."""
        return listener.on_loopback

    def not_accepted(self, port: int) -> frozenset[int]:
        """See `Inner`. None are known where the kernel can't be asked."""
        return frozenset() if self._diag is None else waiting(self._diag, port)

    def close(self) -> None:
        """Let go."""
        if self._diag is not None:
            self._diag.close()


def _taken(address: str, port: int) -> bool:
    """Whether something listens there: a bind tells, without a connection that it would see."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


class OnHost:
    """One service on the host's network. It listens on the host itself, so nothing of it is published."""

    def __init__(
        self,
        service: str,
        folder: Path,
        rewrite: Callable[[Mapping[str, str]], Rewritten],
        log: Callable[[str], None],
        *,
        hold: float,
    ) -> None:
        """`folder` is where its volumes are to lie; `rewrite` makes the addresses in an environment right."""
        self.service = service
        self.lost = False
        self.pid: int | None = None
        self.made: tuple[str, ...] = ()
        self._inner = HostInner()
        self.publisher = Publisher(service, self._inner, log, hold=hold)
        self._folder = folder
        self._rewrite = rewrite
        self._places: dict[str, str] = {}
        self._rewritten: tuple[str, ...] = ()

    @property
    def relays(self) -> tuple[Relays, ...]:
        """See `LocalNetwork`. It goes by ports of the host's that are for all services."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """See `LocalNetwork`."""
        if not self._places:
            return self._rewritten
        return (
            *self._rewritten,
            f"its files lie below {self._folder} ({VOLUMES}); paths in its environment are rewritten, others are not: "
            + ", ".join(sorted(self._places)),
        )

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """See `LocalNetwork`: addresses and paths are rewritten."""
        found = self._rewrite(env)
        self._rewritten = found.notes
        paths = rewrite_paths(found.env, self._places)
        return {**paths, VOLUMES: str(self._folder)} if self._places else paths

    def follow(self, changed: Callable[[], None], *, except_for: Collection[int] = ()) -> None:
        """Nothing is to be done: it listens on the host."""

    async def mount(self, binds: Sequence[Bind], remove: Sequence[str] = ()) -> dict[str, str]:
        """See `LocalNetwork`. Each is a link below the service's folder; processes that run see the new one."""
        failed = {}
        for target in remove:
            gone = self._places.pop(target, None)
            if gone is not None:
                _unlink(Path(gone))
        inner = {bind.target for bind in binds if any(_below(bind.target, other.target) for other in binds)}
        for bind in binds:
            # A volume in a volume can't be put there, as the outer one may be the cluster's: it lies beside it.
            name = bind.target.strip("/")
            place = self._folder / (name.replace("/", "%") if bind.target in inner else name)
            try:
                _link(Path(bind.source), place)
            except OSError as error:
                failed[bind.target] = error.strerror or str(error)
            else:
                self._places[bind.target] = str(place)
        return failed

    async def connect(self, port: int) -> socket.socket:
        """See `LocalNetwork`."""
        try:
            return await self._inner.connect(port)
        except ConnectionRefusedError:
            return await self._inner.connect(port, "::1")

    def set_gate(self, gate: Gate) -> None:
        """See `LocalNetwork`."""
        if self.publisher.gate is not gate:
            self.publisher.set_gate(gate)

    async def close(self) -> None:
        """See `LocalNetwork`; what it has listened on is its own to close."""
        with contextlib.suppress(OSError):
            await self.publisher.close()
        self._inner.close()


def _below(path: str, other: str) -> bool:
    return PurePosixPath(other) in PurePosixPath(path).parents


def _unlink(place: Path) -> None:
    place.unlink(missing_ok=True)


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = place.with_name(f".{place.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(source)
    draft.replace(place)

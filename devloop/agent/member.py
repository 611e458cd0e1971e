"""A developer's attachment, as the agent has it while their session lasts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from .certificates import Termination
from .forward import Connection
from .spec import Spec
from .uplink import Uplink
from .view import RefusedError


@dataclass(frozen=True, slots=True)
class Target:
    """A pod that an attachment takes traffic of, as its engine has found it."""

    uid: str
    name: str
    addresses: tuple[str, ...]
    ports: Mapping[int, int]
    """The Service's port to the pod's own."""
    datagrams: Mapping[int, int] = field(default_factory=dict)
    """The same of UDP."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Target:
        """From the engine. RefusedError."""
        try:
            ports = {int(port): int(own) for port, own in document["ports"].items()}
            datagrams = {int(port): int(own) for port, own in document.get("udp", {}).items()}
            if not all(0 < each < 65536 for known in (ports, datagrams) for pair in known.items() for each in pair):
                raise ValueError("no port")
            addresses = tuple(str(ip_address(each)) for each in map(str, document["addresses"]))
            return cls(str(document["uid"]), str(document["name"]), addresses, ports, datagrams)
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise RefusedError(f"this is no pod: {type(problem).__name__}: {problem}") from None


@dataclass(eq=False)
class Member:
    """See the module."""

    spec: Spec
    connection: Connection
    owner: object
    """The session that it came by."""
    beaten: float
    began: float
    up: bool = True
    """The local service is not known to be down."""
    deaf: frozenset[int] = frozenset()
    """Ports of the Service at which the local service takes nothing."""
    deaf_datagrams: frozenset[int] = frozenset()
    """The same of UDP."""
    silent: bool = False
    taken: bool = False
    """Envoy has taken what follows from it. Until then it is in nobody else's configuration, which it could spoil."""
    fades: float = 0.0
    """When it was last seen to have a connection, having left."""
    uplinks: list[Uplink] = field(default_factory=list)
    tls: dict[int, Termination] = field(default_factory=dict)
    """With what TLS is ended at ports of the Service, as its developer may read it."""
    encrypted: frozenset[int] = frozenset()
    """Ports that its engine has seen to speak TLS."""
    targets: dict[str, Target] = field(default_factory=dict)
    """By the pods' uids; for an attachment that goes by way of pods."""

    def takes_datagrams(self, port: int) -> bool:
        """Datagrams to this port of the Service are this developer's now; else they are the original's, if the
        attachment fails open."""
        if port not in self.spec.datagrams:
            return False
        return self.spec.fail == "closed" or (self.up and not self.silent and port not in self.deaf_datagrams)

    @property
    def open(self) -> bool:
        """Something goes through it."""
        return any(each.open for each in self.uplinks)

    def cut(self) -> None:
        """Give up what waits for this developer."""
        for each in self.uplinks:
            each.cut()

    async def close(self) -> None:
        """Listen no more."""
        for each in self.uplinks:
            await each.close()

"""The seam of attachments: what the engine gives, and what it is told. `docs/attachments.md` has the order of calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar

from devloop.agent.spec import ALL, HOLD_SECONDS, Fail, Kind, Route, Spec, Way
from devloop.config.model import Encryption
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.errors import RemoteError

P = TypeVar("P", bound=asyncio.Protocol)


class LocalEnd(Protocol):
    """The local service, as its traffic sees it. Every method is for the event loop's thread."""

    async def connect(self, factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
        """A connection to what listens on `port` there; while the service reloads, wait for up to its `hold`.

        OSError (or a RemoteError) when it does not come, or there is nothing to wait for.
        """

    @property
    def running(self) -> bool:
        """It runs, or will in a moment: a reload is no gap. False: off, crashed, its build has failed."""

    @property
    def deaf(self) -> Mapping[int, str]:
        """Ports of it that take no connections though it runs, each with the reason: nothing listens there."""

    async def datagrams(self, client: DatagramClient, port: int, source: tuple[str, int]) -> DatagramFlow:
        """A way for datagrams to what listens on a UDP port there, which keeps some while the service reloads; `source`
        is whom it sees them come from, where that can be. OSError or a RemoteError when there is none.
        """

    @property
    def deaf_datagrams(self) -> Mapping[int, str]:
        """As `deaf`, of UDP."""

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` when `running`, `deaf` or `deaf_datagrams` may have changed, until what this returns is
        called."""

    async def stop(self) -> Callable[[], None]:
        """Stop it: the workload that it stands in for is about to come back. Nothing of it runs when this returns.

        From then on `running` stays as it was and connections wait, until what this returns is called: the workload is
        there, and they are refused.
        """


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a service of devloop.toml asks for. `ports`: the Service's, by name or number, to the local ones; "53/udp"
    is that of UDP, where TCP has the same number."""

    kind: Kind
    service: str = ""
    """The Service's name. A `replace` without one takes no traffic: a queue's consumer."""
    ports: Mapping[int | str, int] = field(default_factory=dict)
    routes: tuple[Route, ...] = (ALL,)
    fail: Fail = "open"
    hold: float = HOLD_SECONDS
    workload: str = ""
    """KIND/NAME, in lower case and the singular (deployment/worker): for `replace`."""
    despite_budget: bool = False
    """Replace it although a PodDisruptionBudget wants some of its pods to run."""
    way: Way | None = None
    """`pods`: take what comes to the pods' own addresses, whatever the Service is: each gets a container that stays.
    None: at the Service's address; where that doesn't do (a headless Service, one with UDP ports), it is refused."""
    tls: Encryption = field(default_factory=Encryption)
    local: str = ""
    """The local service's name: several of an engine's may each have ports of one Service."""


class Phase(StrEnum):
    """Where an attachment is in its life."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    OPEN = "failed open"
    """It is held, and the original answers: the agent or the local service is not there. Mends itself."""
    CONTESTED = "contested"
    """Somebody else (a GitOps controller, an edit) undoes it again and again, or the Service has gone: given up."""
    REFUSED = "refused"
    """It could not be: a conflict, a right, or a Service of a kind that can't be attached."""
    LEAVING = "leaving"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class State:
    """A moment of an attachment's life. `since` is monotonic nanoseconds."""

    phase: Phase
    since: int
    reason: str = ""
    notes: tuple[str, ...] = ()
    """What people should know though it works: an autoscaler, a budget."""


class AttachError(RemoteError):
    """It can't be attached; what, where and what to do."""


class HeldError(AttachError):
    """Somebody else holds it. `holders`, the oldest first; `dead`: all their leases are over."""

    def __init__(self, what: str, *, where: str, hint: str, holders: tuple[Spec, ...], dead: bool) -> None:
        super().__init__(what, where=where, hint=hint)
        self.holders = holders
        self.dead = dead


@dataclass(frozen=True, slots=True)
class Holding:
    """One line of `devloop list`: an attachment of anybody's in the namespace."""

    spec: Spec
    over: float
    """Seconds since its lease ended; negative while it holds."""
    mine: bool

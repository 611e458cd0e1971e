"""One attachment: what is asked for, what the cluster was told, and how it stands."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from devloop.agent.objects import lease_name, short
from devloop.agent.spec import Spec

from .local_tls import TlsEnd
from .seam import LocalEnd, Phase, State, Wanted

if TYPE_CHECKING:
    from .encryption import Ended

MUTE_SECONDS = 10.0
"""How long nothing is asked of a local port with which no TLS could be made."""
REVERTS = 3
REVERT_SECONDS = 60.0
"""After so many reverts by somebody else within this time, devloop gives way."""


def identifier(user: str, host: str, instance: str, wanted: Wanted) -> str:
    """The same for the same engine and service: one that was killed finds its own attachments again."""
    target = wanted.service or wanted.workload.replace("/", "-")
    named = (user, host, instance, wanted.kind, target, wanted.local)
    digest = hashlib.sha256("\0".join(named).encode()).hexdigest()[:10]
    clean = re.sub(r"[^a-z0-9-]", "-", target.lower()).strip("-") or "x"
    return short(clean, f"-{digest}", 50)


class Attachment:
    """See the module. The engine holds it, `Attachments` works on it."""

    def __init__(self, spec: Spec, wanted: Wanted, local: LocalEnd, changed: Callable[[Attachment], None]) -> None:
        self.spec = spec
        self.wanted = wanted
        self.local = local
        self.end = TlsEnd(local, self._spoken)
        """The same, with TLS where it speaks that."""
        self.ended: Ended | None = None
        """How TLS is ended on the way here; None: that has not been looked at."""
        self._mute: dict[int, str] = {}
        self._trouble = ""
        self.state = State(Phase.ATTACHING, time.monotonic_ns())
        self.notes: tuple[str, ...] = ()
        self.mesh = ""
        """What is to be known of the service mesh that the original's pods are in."""
        self.unmet = ""
        """Why the original answers though all is in its place: no pod has a door."""
        self.barred = ""
        """Who is kept from whom by a NetworkPolicy, so that the Service leads to the original (`reaching.py`)."""
        self.listeners: dict[int, int] = {}
        """Where the agent listens, by the Service's port."""
        self.earlier: tuple[tuple[str, int], ...] = ()
        """Who has connections from before that lead to the original, and how many, most first (`earlier.py`)."""
        self.earlier_rate: float | None = None
        """About how many requests per second they carry; None: that is not known."""
        self.leads_to: frozenset[str] = frozenset()
        """The uids of the original's pods that they lead to."""
        self.uncounted = ""
        """Why that is not known."""
        self.looked = asyncio.Event()
        """They have been looked for once."""
        self.look_again = asyncio.Event()
        """They are to be looked for now."""
        self.dirty = asyncio.Event()
        """Something has to be looked at anew."""
        self.version = 0
        """The Service's resourceVersion when it was last led to the agent."""
        self.sized = 0
        """The workload's resourceVersion when it was last set to zero (`sizes.py`)."""
        self.reverts: list[float] = []
        self.gone = False
        """The Service was deleted."""
        self.told: tuple[object, bool, tuple[int, ...], tuple[int, ...]] | None = None
        """The session that knows of it, and what it was told of the local service: whether it runs, its `deaf`, and its
        `deaf_datagrams`."""
        self.task: asyncio.Task[None] | None = None
        """Keeps it, once it is attached."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Whatever is done for it alone, and ends with it: that too, what watches for it, what puts right."""
        self.stop: Callable[[], None] = lambda: None
        """Hear no more of the local service."""
        self._changed = changed

    def hold(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """A task of its own, which ends with it."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def cancel(self) -> None:
        """End what is done for it. Who calls this may be one of these tasks, and ends at its next step."""
        for each in self.tasks:
            each.cancel()

    @property
    def lease(self) -> str:
        """The name of its lease."""
        return lease_name(self.spec)

    @property
    def over(self) -> bool:
        """It has ended, one way or another."""
        return self.state.phase in (Phase.REFUSED, Phase.CONTESTED, Phase.LEAVING, Phase.LEFT)

    @property
    def deaf(self) -> dict[int, str]:
        """The Service's ports whose local port takes no connections, each with the reason."""
        reasons = {**self._mute, **self.local.deaf}
        return {port: reasons[here] for port, here in self.spec.ports.items() if here in reasons}

    @property
    def deaf_datagrams(self) -> dict[int, str]:
        """The same of UDP."""
        if not self.spec.datagrams:
            return {}
        reasons = self.local.deaf_datagrams
        return {port: reasons[here] for port, here in self.spec.datagrams.items() if here in reasons}

    def become(self, phase: Phase, reason: str = "") -> None:
        """Tell whoever listens, if it is news."""
        old = self.state
        deaf: dict[str, str] = {}
        if phase is Phase.ATTACHED:
            deaf = {str(port): why for port, why in self.deaf.items()}
            deaf.update({f"{port}/udp": why for port, why in self.deaf_datagrams.items()})
        ended = self.ended.notes if self.ended is not None else ()
        past = (f"port {port} is answered by the original: {why}" for port, why in deaf.items())
        notes = (*self.notes, *ended, *filter(None, [self.mesh, self._trouble]), *past)
        if (old.phase, old.reason, old.notes) == (phase, reason, notes):
            return
        since = old.since if old.phase is phase else time.monotonic_ns()
        self.state = State(phase, since, reason, notes)
        self._changed(self)

    def _spoken(self, port: int, why: str) -> None:
        """Whether TLS could be made with the local service at a port of it. It is tried again after a while."""
        if self._mute.get(port, "") == why:
            return
        self._mute.pop(port, None)
        if why:
            self._mute[port] = f"port {port}: {why}"
            asyncio.get_running_loop().call_later(MUTE_SECONDS, self._spoken, port, "")
        self.dirty.set()

    def troubled(self, note: str) -> None:
        """Something of it does not go on, though all goes on for now; or does again."""
        if note != self._trouble:
            self._trouble = note
            self.become(self.state.phase, self.state.reason)

    def tell(self) -> None:
        """Something besides its state is news."""
        self._changed(self)

    def reverted(self, now: float) -> bool:
        """Somebody has undone it; whether it is time to give way. `now` in monotonic seconds."""
        self.reverts = [each for each in self.reverts if now - each < REVERT_SECONDS] + [now]
        return len(self.reverts) > REVERTS


def timestamp() -> str:
    """Now, as the API writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

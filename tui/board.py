"""What is on the board now: the snapshot, and the events since. Knows neither a screen nor a socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from devloop.protocol import LogBatch, Loop, Notice, RemoteStatus, ServiceStatus, Snapshot, StopProgress

Event = Snapshot | ServiceStatus | Loop | LogBatch | Notice | RemoteStatus | StopProgress

LOOPS_KEPT = 200
NOTICES_KEPT = 500


@dataclass
class Board:
    """A fold of events. It decides nothing: all that it shows, the engine has said."""

    project: str = ""
    root: str = ""
    file: str = ""
    remote: RemoteStatus | None = None
    """None: the project has no remote."""
    engine_pid: int = 0
    version: str = ""
    started_at: int = 0
    config_error: str = ""
    stopping: bool = False
    progress: StopProgress | None = None
    services: dict[str, ServiceStatus] = field(default_factory=dict)
    """In the order of the project file."""
    notices: deque[Notice] = field(default_factory=lambda: deque(maxlen=NOTICES_KEPT))
    loops: dict[str, deque[Loop]] = field(default_factory=dict)
    """Service → its loops that are known here, oldest first."""

    def apply(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case Snapshot():
                self._replace(event)
            case ServiceStatus():
                self.services[event.name] = event
                self._learn(event.last_loop)
            case Loop():
                self._learn(event)
            case Notice():
                self.notices.append(event)
            case RemoteStatus():
                self.remote = event
            case StopProgress():
                self.progress = event
                self.stopping = True
            case LogBatch():
                pass  # a log view has its own connection, see `tui.session`

    def remember(self, loops: Sequence[Loop]) -> None:
        """Add loops from the engine's history."""
        for loop in loops:
            self._learn(loop)

    def loops_of(self, service: str) -> list[Loop]:
        """What is known of its loops, oldest first."""
        return list(self.loops.get(service, ()))

    @property
    def opened(self) -> bool:
        """Whether a loop is under way: then time itself changes what is shown."""
        return any(status.opened_at is not None for status in self.services.values())

    @property
    def cut_off(self) -> bool:
        """Whether there is a remote and it can't be reached now."""
        return self.remote is not None and self.remote.phase != "connected"

    def _replace(self, snapshot: Snapshot) -> None:
        self.project, self.root, self.file = snapshot.project, snapshot.root, snapshot.file
        self.remote, self.engine_pid, self.version = snapshot.remote, snapshot.engine_pid, snapshot.version
        self.started_at, self.config_error = snapshot.started_at, snapshot.config_error
        self.stopping = self.stopping or snapshot.stopping
        self.services = {status.name: status for status in snapshot.services}
        self.notices = deque(snapshot.notices, maxlen=NOTICES_KEPT)
        for status in snapshot.services:
            self._learn(status.last_loop)

    def _learn(self, loop: Loop | None) -> None:
        if loop is None:
            return
        known = self.loops.setdefault(loop.service, deque(maxlen=LOOPS_KEPT))
        if not known or loop.id > known[-1].id:
            known.append(loop)  # the usual case
        elif all(other.id != loop.id for other in known):
            merged = sorted((*known, loop), key=lambda other: other.id)
            self.loops[loop.service] = deque(merged[-LOOPS_KEPT:], maxlen=LOOPS_KEPT)
        # The same loop may come again, with a stamp more (`served` comes after `ready`).
        elif any(other.id == loop.id and len(other.stamps) < len(loop.stamps) for other in known):
            self.loops[loop.service] = deque(
                (loop if other.id == loop.id else other for other in known), maxlen=LOOPS_KEPT
            )

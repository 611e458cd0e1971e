"""What is on the board now: the snapshot, and the events since. Knows neither a screen nor a socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from devloop.protocol import (
    LogBatch,
    Loop,
    Notice,
    RemoteStatus,
    RequestBatch,
    RequestRecord,
    ServiceStatus,
    Snapshot,
    StopProgress,
)

Event = Snapshot | ServiceStatus | Loop | LogBatch | Notice | RemoteStatus | RequestBatch | StopProgress

LOOPS_KEPT = 200
NOTICES_KEPT = 500
REQUESTS_KEPT = 1_000
"""Of each service."""


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
    requests: dict[str, deque[RequestRecord]] = field(default_factory=dict)
    """Service → requests that went through its attachments, in the order in which they were over."""
    _expected: dict[str, set[RequestRecord]] = field(default_factory=dict)
    """Requests that the history had, and that may still come as events."""

    def begin(self) -> None:
        """Another engine may be on the other end: what the last one was doing is over."""
        self.stopping, self.progress = False, None

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
            case RequestBatch():
                self._hear(event.requests)
            case StopProgress():
                self.progress = event
                self.stopping = True
            case LogBatch():
                pass  # a log view has its own connection, see `tui.session`

    def remember(self, loops: Sequence[Loop]) -> None:
        """Add loops from the engine's history."""
        for loop in loops:
            self._learn(loop)

    def remember_requests(self, service: str, requests: Sequence[RequestRecord]) -> None:
        """Add requests that the engine remembers, oldest first. What is known already is there once."""
        known = self.requests.get(service, ())
        self._expected[service] = set(requests).difference(known)
        told = set(requests)
        merged = sorted(
            (*requests, *(each for each in known if each not in told)), key=lambda each: each.at + each.duration
        )
        self.requests[service] = deque(merged, maxlen=REQUESTS_KEPT)

    def requests_of(self, service: str) -> list[RequestRecord]:
        """What is known of the requests that went through, oldest first."""
        return list(self.requests.get(service, ()))

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

    def _hear(self, requests: Sequence[RequestRecord]) -> None:
        for each in requests:
            expected = self._expected.get(each.service)
            if expected and each in expected:
                expected.discard(each)  # the history had it
                continue
            self.requests.setdefault(each.service, deque(maxlen=REQUESTS_KEPT)).append(each)

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

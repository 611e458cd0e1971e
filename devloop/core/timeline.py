"""The timeline of one loop that is under way."""

from __future__ import annotations

from collections.abc import Iterable

from devloop.core.commands import RecordLoop
from devloop.protocol import PHASES, Cause, Outcome


class Timeline:
    """Collects stamps, files and the cause of one loop, then becomes a RecordLoop."""

    def __init__(self, service: str, cause: Cause, first: str, at: int) -> None:
        self.service = service
        self.cause = cause
        self.files: dict[str, None] = {}
        self._stamps: dict[str, int] = {}
        self.stamp(first, at)

    @property
    def began(self) -> int:
        """The first stamp, monotonic."""
        return min(self._stamps.values())

    def stamp(self, phase: str, at: int) -> None:
        """A phase is reached. Reached again (the build of a second change, say), the later time counts."""
        assert phase in PHASES, phase
        self._stamps.pop(phase, None)
        self._stamps[phase] = at

    def changed(self, files: Iterable[str]) -> None:
        """More files have changed before it settled."""
        self.files.update(dict.fromkeys(files))

    def end(self, outcome: Outcome, detail: str = "") -> RecordLoop:
        """What is kept of it."""
        stamps = dict(sorted(self._stamps.items(), key=lambda item: item[1]))
        return RecordLoop(self.service, self.cause, outcome, stamps, tuple(self.files), detail)

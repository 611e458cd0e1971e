"""The flap guard: a service that writes into what it watches would restart itself for ever.

Who wrote a file can't be known without root (fanotify), but a process betrays itself by its regularity: after
each start the same files change, after the same time. People are neither that quick nor that regular.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from devloop.config.model import MS, SECOND

AT_ONCE = 100 * MS
"""Nobody saves so soon after a start, several times in a row."""
AT_ONCE_TIMES = 4
NEAR = 5 * SECOND
"""A change later than this after the start is no sign of anything."""
SPREAD = 0.15
"""Largest (longest - shortest) / longest of the delays that counts as regular."""
REGULAR_TIMES = 8
"""With delays spread evenly over half a second, eight in a row within SPREAD come once in 100,000 saves."""


@dataclass
class FlapGuard:
    """One service's. Fed with each change; trips when the service itself must be the writer."""

    _files: frozenset[str] = frozenset()
    _delays: list[int] = field(default_factory=list)

    def changed(self, files: frozenset[str], since_start: int) -> bool:
        """These files changed so many nanoseconds after the process started. True: it writes them itself."""
        if since_start > NEAR or not (files & self._files):
            self._files, self._delays = files, []
        if since_start > NEAR:
            return False
        self._files &= files
        self._delays.append(since_start)
        quick = self._delays[-AT_ONCE_TIMES:]
        if len(quick) == AT_ONCE_TIMES and max(quick) < AT_ONCE:
            return True
        regular = self._delays[-REGULAR_TIMES:]
        return len(regular) == REGULAR_TIMES and max(regular) - min(regular) <= SPREAD * max(regular)

    def culprits(self) -> tuple[str, ...]:
        """The files that changed each time."""
        return tuple(sorted(self._files))

    def reset(self) -> None:
        """Forget everything."""
        self._files, self._delays = frozenset(), []

"""When is a save over? An adaptive debounce.

The watcher reports whole files (closed after writing, or renamed into place), so one file needs next to no
quiet time: the default is 4 ms. Many files at once are a checkout, a formatter or a code generator, which
pause longer between two files than an editor between its two writes: the more files, the longer the quiet
time. And a writer that comes back right after a burst was called settled has shown that the quiet time was
too short for it: the next burst of that service waits longer, until it has been calm for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from devloop.config.model import MS, SECOND

MANY = ((100, 120 * MS), (10, 60 * MS), (2, 15 * MS))
"""(files in the burst, shortest quiet time): the first row that fits counts."""
RETURN = 60 * MS
"""A change so soon after a burst was called settled belonged to it."""
LONGEST_QUIET = 150 * MS
LONGEST_BURST = 2 * SECOND
"""A writer that never pauses is reacted to after this long all the same."""
CALM = 5 * SECOND
"""After so long without a change, what was learned is forgotten."""


@dataclass(frozen=True, slots=True)
class Burst:
    """Changes that belong together."""

    files: tuple[str, ...]
    first: int
    last: int


@dataclass
class Debounce:
    """One service's. `quiet` is its configured quiet time in nanoseconds."""

    quiet: int
    _files: dict[str, None] = field(default_factory=dict)
    _first: int = 0
    _last: int = 0
    _settled_at: int | None = None
    _learned: int = 0

    @property
    def pending(self) -> bool:
        """Whether a burst is under way."""
        return bool(self._files)

    def feed(self, files: Iterable[str], now: int) -> int:
        """Files have changed. Returns the time at which the burst is settled if nothing more happens."""
        if not self._files:
            self._first = now
            if self._settled_at is not None and now - self._settled_at < RETURN:
                self._learned = min(max(self._learned, self.quiet) * 4, LONGEST_QUIET)
            elif now - self._last > CALM:
                self._learned = 0
        self._files.update(dict.fromkeys(files))
        self._last = now
        return self.deadline

    @property
    def deadline(self) -> int:
        """When the burst under way is settled, as far as is known now."""
        by_size = next((quiet for files, quiet in MANY if len(self._files) >= files), 0)
        quiet = max(self.quiet, by_size, self._learned)
        return min(self._last + quiet, self._first + max(LONGEST_BURST, self.quiet))

    def settle(self, now: int) -> Burst | None:
        """The burst, if it is settled; then the next begins. None if it is not yet, or there is none."""
        if not self._files or now < self.deadline:
            return None
        burst = Burst(tuple(self._files), self._first, self._last)
        self._files.clear()
        self._settled_at = now
        return burst

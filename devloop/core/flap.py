"""The flap guard: a service that writes into what it watches would restart itself for ever.

Who wrote a file can't be known without root (fanotify), but a process betrays itself: after each start the
same files change, after the same time. So does somebody who saves every three seconds; hence a trial before
a verdict. Once, the new process is started late on purpose. If the change keeps its distance from the start,
the process makes it; if it keeps its distance from the last change, somebody else does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from devloop.config.model import MS, SECOND

AT_ONCE = 100 * MS
"""Nobody saves so soon after a start, several times in a row."""
AT_ONCE_TIMES = 4
NEAR = 5 * SECOND
"""A change later than this after the start is no sign of anything."""
SPREAD = 0.15
"""Largest (longest - shortest) / longest of the delays that counts as regular."""
REGULAR_TIMES = 8
SAME = 0.1
"""In a trial, a delay that differs by less than this share, and SLACK, is the same delay."""
SLACK = 20 * MS
LEAST_LATE = 300 * MS
MOST_LATE = 1 * SECOND


class Verdict(Enum):
    """What a change says about who made it."""

    NOTHING = "nothing"
    TRIAL = "trial"  # start the next process late, by `late`
    CAUGHT = "caught"  # the service itself


@dataclass
class FlapGuard:
    """One service's. Fed with the first change of each burst."""

    _files: frozenset[str] = frozenset()
    _delays: list[int] = field(default_factory=list)
    _on_trial: bool = False
    _patience: int = 1
    """Grows with each acquittal: who saves regularly is not tried again and again."""

    def changed(self, files: frozenset[str], since_start: int | None) -> Verdict:
        """These files changed so many nanoseconds after the process started; None: while none ran."""
        tried, self._on_trial = self._on_trial, False
        if tried:
            usual = median(self._delays)
            if since_start is not None and abs(since_start - usual) <= SAME * usual + SLACK:
                self._files &= files
                return Verdict.CAUGHT
            self._patience *= 2
        if tried or since_start is None or since_start > NEAR or not (files & self._files):
            self._files, self._delays = files, []
        if since_start is None or since_start > NEAR:
            return Verdict.NOTHING
        self._files &= files
        self._delays.append(since_start)
        self._on_trial = self._suspicious()
        return Verdict.TRIAL if self._on_trial else Verdict.NOTHING

    @property
    def late(self) -> int:
        """How late the process on trial is to be started, in nanoseconds: enough to tell the two apart."""
        return min(max(int(median(self._delays) * 0.3), LEAST_LATE), MOST_LATE)

    def culprits(self) -> tuple[str, ...]:
        """The files that changed each time."""
        return tuple(sorted(self._files))

    def reset(self) -> None:
        """Forget everything."""
        self._files, self._delays = frozenset(), []
        self._on_trial, self._patience = False, 1

    def _suspicious(self) -> bool:
        quick = self._delays[-AT_ONCE_TIMES * self._patience :]
        if len(quick) == AT_ONCE_TIMES * self._patience and max(quick) < AT_ONCE:
            return True
        regular = self._delays[-REGULAR_TIMES * self._patience :]
        if len(regular) < REGULAR_TIMES * self._patience:
            return False
        return max(regular) - min(regular) <= SPREAD * max(regular)

"""The lines of a log view: bounded, filtered, searched. Knows no screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from devloop.protocol import LogLine
from devloop.records import LevelFilter
from tui.ansi import plain

CAPACITY = 20_000
"""Lines kept; what scrolled out of here is still in the engine's files."""

GAP = "gap"
"""The `stream` of a line that stands for lines that were passed over."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an extension did to the rows on view."""

    added: int
    removed: int
    """From the top."""
    replaced: int = 0
    """From the end, before those that were added."""


class LogBuffer:
    """Rows are the lines that pass the filter, numbered from `first`; a line keeps its number for life."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.first = 0
        """The number of the oldest row. Numbers never come again until `clear` or another filter."""
        self.filter: re.Pattern[str] | None = None
        self.level = ""
        """The least level that is on view; empty for all lines."""
        self._levels: LevelFilter | None = None
        self._lines: list[LogLine] = []
        self._rows: list[LogLine] = self._lines
        self._unfinished: dict[tuple[str, str], LogLine] = {}
        """Service and stream → its line that has no end yet. These are the last lines, whatever comes."""
        self._open_rows = 0
        """How many of these are on view."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> LogLine:
        return self._rows[index]

    @property
    def total(self) -> int:
        """Lines kept, whether on view or not."""
        return len(self._lines)

    def clear(self) -> None:
        """Forget all lines; the filter stays."""
        self._lines.clear()
        self._unfinished.clear()
        self._rows = [] if self.narrowed else self._lines
        self._open_rows = 0
        self.first = 0

    def extend(self, lines: Sequence[LogLine], dropped: int = 0) -> Change:
        """Add lines, oldest first; `dropped` lines before them were passed over."""
        if dropped:
            at = lines[0].at if lines else 0
            lines = [LogLine("", at, GAP, f"{dropped:,} lines passed over"), *lines]
        replaced = 0
        if self._unfinished or any(line.partial for line in lines):
            replaced, lines = self._take_up(lines)
        fresh = [line for line in lines if self._passes(line)] if self.narrowed else lines
        self._lines.extend(lines)
        if self.narrowed:
            self._rows.extend(fresh)
        self._open_rows = sum(line.partial for line in fresh) if self._unfinished else 0
        return Change(len(fresh), self._prune(), replaced)

    def _take_up(self, lines: Sequence[LogLine]) -> tuple[int, list[LogLine]]:
        """Take away the lines without an end; how many rows those were, and the new lines with those that have none."""
        rows = self._open_rows
        if self._unfinished:
            del self._lines[-len(self._unfinished) :]
        if self.narrowed and rows:
            del self._rows[-rows:]
        ended = []
        for line in lines:
            if line.partial:
                self._unfinished[line.service, line.stream] = line
            else:
                self._unfinished.pop((line.service, line.stream), None)
                ended.append(line)
        return rows, [*ended, *self._unfinished.values()]

    @property
    def narrowed(self) -> bool:
        """Whether a filter or a level hides lines."""
        return self.filter is not None or self._levels is not None

    def set_filter(self, pattern: re.Pattern[str] | None) -> None:
        """Show only the lines that match, or all."""
        self.filter = pattern
        self._narrow()

    def set_level(self, level: str) -> None:
        """Show only lines of this level and above (`devloop.records.LEVELS`), or all."""
        self.level = level
        self._narrow()

    def _narrow(self) -> None:
        self._levels = LevelFilter(self.level) if self.level else None
        self._rows = [line for line in self._lines if self._passes(line)] if self.narrowed else self._lines
        self._open_rows = sum(line.partial for line in self._rows[-len(self._unfinished) :]) if self._unfinished else 0
        self.first = 0

    def find(self, pattern: re.Pattern[str], start: int, step: int) -> int | None:
        """The index of the first row that matches, from `start` in steps of 1 or -1, around the ends."""
        size = len(self._rows)
        for n in range(size):
            index = (start + n * step) % size
            if pattern.search(plain(self._rows[index].text)):
                return index
        return None

    def matches(self, pattern: re.Pattern[str]) -> list[int]:
        """The indexes of all rows that match."""
        return [n for n, line in enumerate(self._rows) if pattern.search(plain(line.text))]

    def _passes(self, line: LogLine) -> bool:
        if self._levels is not None and line.stream != GAP:
            passes = self._levels.passes(line.service, line.stream, line.text)
            if not passes:
                return False
        return self.filter is None or bool(self.filter.search(plain(line.text)))

    def _prune(self) -> int:
        surplus = len(self._lines) - self.capacity
        if surplus <= 0:
            return 0
        if not self.narrowed:
            del self._lines[:surplus]
            self.first += surplus
            return surplus
        gone = 0
        for line in self._lines[:surplus]:  # rows are the same objects in the same order
            gone += gone < len(self._rows) and self._rows[gone] is line
        del self._lines[:surplus]
        del self._rows[:gone]
        self.first += gone
        return gone

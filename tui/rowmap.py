"""Which row of the screen belongs to which line, where long lines take several rows. Knows no screen."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable


class RowMap:
    """Lines by index, rows by number from the top. Where lines are not wrapped each is one row, at no cost."""

    def __init__(self) -> None:
        self.wrapped = False
        self._count = 0
        self._ends: list[int] = []
        """Rows up to the end of each line, counted from a beginning that pruning leaves behind."""
        self._base = 0

    @property
    def rows(self) -> int:
        """How many there are."""
        if not self.wrapped:
            return self._count
        return self._ends[-1] - self._base if self._ends else 0

    def reset(self, wrapped: bool, heights: Iterable[int], count: int) -> None:
        """Begin anew with `count` lines; their heights, in rows, are only asked for where lines are `wrapped`."""
        self.wrapped, self._base, self._ends, self._count = wrapped, 0, [], 0
        self.extend(heights, count)

    def extend(self, heights: Iterable[int], count: int) -> None:
        """Add lines at the end."""
        self._count += count
        if not self.wrapped:
            return
        end = self._ends[-1] if self._ends else self._base
        for height in heights:
            end += height
            self._ends.append(end)

    def drop(self, lines: int) -> None:
        """Take lines away at the end."""
        self._count -= lines
        if self.wrapped and lines > 0:
            del self._ends[-lines:]

    def prune(self, lines: int) -> int:
        """Take lines away at the top; says how many rows those were."""
        self._count -= lines
        if not self.wrapped or lines <= 0:
            return lines
        before, self._base = self._base, self._ends[lines - 1]
        del self._ends[:lines]
        return self._base - before

    def locate(self, row: int) -> tuple[int, int]:
        """(index of the line, which of its rows) at a row that is there."""
        if not self.wrapped:
            return row, 0
        target = row + self._base
        index = bisect_right(self._ends, target)
        begin = self._ends[index - 1] if index else self._base
        return index, target - begin

    def row_of(self, index: int) -> int:
        """The first row of a line."""
        if not self.wrapped or index <= 0:
            return max(0, index)
        return self._ends[index - 1] - self._base

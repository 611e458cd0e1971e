"""Where the time of one loop went: a bar in proportion, phase by phase, and what set it off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from devloop.protocol import Loop, Outcome
from tui.formats import duration, path_list

PHASE_COLOURS: Mapping[str, str] = {
    "detected": "$secondary",
    "settled": "$secondary-lighten-2",
    "built": "$accent",
    "stopped": "$error",
    "spawned": "$warning",
    "ready": "$primary",
    "served": "$success",
}
WATERFALL_ROWS = 9
"""Height from which on each phase has a line of its own."""


class Timeline(Widget):
    """Draws `loop`. In two or three lines: bar, legend, files. With more room: a waterfall."""

    ALLOW_SELECT: ClassVar[bool] = False

    loop: reactive[Loop | None] = reactive(None)
    empty: reactive[str] = reactive("")
    """What to say if there is no loop."""

    def render(self) -> Content:
        """The lines, as many as there is room for."""
        width, height = self.size.width - 2, self.size.height
        if width < 4 or height < 1:
            return Content()
        if self.loop is None:
            return Content.styled(f" {self.empty}", "$text-muted")
        tall = height >= WATERFALL_ROWS
        lines = self._waterfall(self.loop, width) if tall else [self._bar(self.loop, width)]
        tail = self._tail(self.loop, width)
        if not tall and height > 1:
            # A failure is more telling than the phases that led to it.
            room = height - len(lines) - (len(tail) if height > 2 else 0)
            legend = self._legend(self.loop, width, max(0, room))
            lines += tail[:1] if self.loop.outcome is Outcome.FAILED and height == 2 else legend
        lines += tail
        return Content("\n").join([Content.assemble(" ", line) for line in lines[:height]])

    @staticmethod
    def _bar(loop: Loop, width: int) -> Content:
        spans = loop.spans()
        if not spans or loop.total <= 0:
            return Content.styled("no phases", "$text-muted")
        # Each phase gets a cell, so that none disappears; the rest is shared out in proportion.
        spare = width - len(spans)
        cells = [1 + spare * (end - begin) // loop.total for _, begin, end in spans]
        cells[max(range(len(cells)), key=cells.__getitem__)] += width - sum(cells)
        parts: list[tuple[str, str]] = []
        for (phase, begin, end), size in zip(spans, cells, strict=True):
            colour = PHASE_COLOURS.get(phase, "$foreground")
            took = duration(end - begin)
            labels = (f"{phase} {took}", phase, took, "")
            label = next(text for text in labels if len(text) + 2 <= size or not text)
            parts.append((label.center(size), f"$background on {colour}"))
        return Content.assemble(*parts)

    @staticmethod
    def _legend(loop: Loop, width: int, rows: int) -> list[Content]:
        if rows < 1:
            return []
        parts = [
            Content.assemble(
                ("▪", PHASE_COLOURS.get(phase, "$foreground")),
                (f"{phase} ", "$text-muted"),
                duration(end - begin),
            )
            for phase, begin, end in loop.spans()
        ]
        took = [end - begin for _, begin, end in loop.spans()]
        for gap in (3, 2, 1):
            if sum(part.cell_length + gap for part in parts) - gap <= width:
                return [Content(" " * gap).join(parts)]
        # What does not fit is what took the least.
        kept: set[int] = set()
        room = width - 2
        for n in sorted(range(len(parts)), key=lambda n: -took[n]):
            if parts[n].cell_length + 1 > room:
                break
            kept.add(n)
            room -= parts[n].cell_length + 1
        return [Content(" ").join([*(parts[n] for n in sorted(kept)), Content.styled("…", "$text-muted")])]

    @staticmethod
    def _waterfall(loop: Loop, width: int) -> list[Content]:
        total = max(1, loop.total)
        room = max(8, width - 23)
        lines = []
        for phase, begin, end in loop.spans():
            left = begin * (room - 1) // total
            size = max(1, end * room // total - left)
            lines.append(
                Content.assemble(
                    f"{phase:<9}",
                    " " * left,
                    ("█" * size, PHASE_COLOURS.get(phase, "$foreground")),
                    " " * (room - left - size),
                    f" {duration(end - begin):>6}",
                    (f" {100 * (end - begin) // total:>3} %", "$text-muted"),
                )
            )
        return lines

    @staticmethod
    def _tail(loop: Loop, width: int) -> list[Content]:
        lines = []
        if loop.outcome is Outcome.FAILED and loop.detail:
            lines.append(Content.styled(f"✗ {loop.detail}", "$text-error").truncate(width, ellipsis=True))
        if loop.files:
            head = "changed: "
            lines.append(Content.assemble((head, "$text-muted"), path_list(loop.files, width - len(head))))
        return lines

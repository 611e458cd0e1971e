"""Text that takes several rows beside what stands before it: the further rows are indented. Knows no screen."""

from __future__ import annotations

from textual.content import Content

LEAST = 20
"""Cells that the text gets at least, whatever stands before it."""


def hanging(head: Content, text: Content, width: int) -> list[Content]:
    """`head`, and beside it the text, which is wrapped within `width` cells in all."""
    room = max(LEAST, width - head.cell_length)
    first, *more = [row for line in text.split("\n", allow_blank=True) for row in line.wrap(room)] or [Content()]
    return [head + first, *(row.pad_left(head.cell_length) for row in more)]

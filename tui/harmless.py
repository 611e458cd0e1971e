"""The last guard before the terminal: names, paths, values and messages that come from elsewhere may hold sequences."""

from __future__ import annotations

import re

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Controls, and what turns the order of letters around, as in `devloop.escapes`."""


class Harmless(LineFilter):
    """Takes controls out of whatever any widget shows. They have no width, so the layout stays."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """See LineFilter."""
        if all(segment.text.isprintable() or segment.control for segment in segments):
            return segments
        return [
            segment if segment.control else Segment(_CONTROL.sub("", segment.text), segment.style)
            for segment in segments
        ]


HARMLESS = Harmless()

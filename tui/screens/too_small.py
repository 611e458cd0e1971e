"""What is said instead of breaking the layout."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Static

TIMES = "\N{MULTIPLICATION SIGN}"
SMALLEST = (40, 10)
"""Columns and rows that the other screens need."""


class TooSmallScreen(Screen[None]):
    """Covers whatever was shown until there is room again. The keys of the app go on working."""

    def compose(self) -> ComposeResult:
        """One sentence."""
        yield Static(id="too-small")

    def on_resize(self) -> None:
        """Say how small it is."""
        columns, rows = SMALLEST
        self.query_one(Static).update(
            f"too small (needs {columns}{TIMES}{rows})\nit is {self.size.width}{TIMES}{self.size.height}"
        )

"""A line or two that can't be overlooked: the engine is gone, devloop.toml is broken."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static


class Banner(Static):
    """Shown while it has something to say."""

    def say(self, text: str, hint: str = "") -> None:
        """Show a text, or nothing."""
        self.display = bool(text)
        if text:
            self.update(Content.assemble(("✗ ", "bold"), text, (f"  {hint}" if hint else "", "$text-muted")))

"""A line or two that can't be overlooked: the engine is gone, devloop.toml is broken, the remote can't be reached."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from tui.states import TONES, Look

BROKEN = Look("✗", "tone--bad")


class Banner(Static):
    """Shown while it has something to say."""

    def on_mount(self) -> None:
        """Nothing yet."""
        self.display = False

    def say(self, text: str, hint: str = "", look: Look = BROKEN) -> None:
        """Show a text, or nothing."""
        self.display = bool(text)
        if text:
            for tone in TONES:
                self.set_class(tone == look.tone, f"-{tone.removeprefix('tone--')}")
            self.update(
                Content.assemble((f"{look.glyph} ", "bold"), text, (f"  {hint}" if hint else "", "$text-muted"))
            )

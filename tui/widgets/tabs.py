"""A line of views, one of which is shown."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

GAP = 3


@dataclass(frozen=True, slots=True)
class Tab:
    """A name, and how much there is of it; None if that is not known."""

    name: str
    number: int | None = None

    @property
    def text(self) -> str:
        """As it is shown."""
        return self.name if self.number is None else f"{self.name} {self.number}"


class TabLine(Widget):
    """Shows `tabs`, the active one marked by more than a colour. Posts `Chosen` on a click."""

    ALLOW_SELECT = False

    tabs: reactive[tuple[Tab, ...]] = reactive(())
    active: reactive[int] = reactive(0)

    class Chosen(Message):
        """A view was clicked."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def render(self) -> Content:
        """The line."""
        parts: list[Content | str | tuple[str, str]] = [" "]
        for index, tab in enumerate(self.tabs):
            chosen = index == self.active
            parts.append((f"▸{tab.text}", "bold $primary") if chosen else (f" {tab.text}", "$text-muted"))
            parts.append(" " * GAP)
        return Content.assemble(*parts).truncate(self.size.width)

    async def on_click(self, event: events.Click) -> None:
        """Choose what is under the pointer."""
        column = 1
        for index, tab in enumerate(self.tabs):
            if column <= event.x < column + len(tab.text) + 1:
                self.post_message(self.Chosen(index))
            column += len(tab.text) + 1 + GAP

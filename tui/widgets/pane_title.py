"""A line that separates panes and says what is below it."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

RULE, ACTIVE = "$foreground 25%", "$primary"


class PaneTitle(Widget):
    """`─ left ──────── right ─`; where both do not fit, the left side is cut, or the right one `yields`."""

    ALLOW_SELECT = False

    left: reactive[Content] = reactive(Content())
    right: reactive[Content] = reactive(Content())
    yields: reactive[bool] = reactive(False)
    """Whether the right side goes rather than that the left one is cut."""
    active: reactive[bool] = reactive(False)
    """Whether the pane below has the focus."""

    def render(self) -> Content:
        """The line."""
        width = self.size.width
        tight = self.left.cell_length + self.right.cell_length + 8 > width
        gone = self.right.cell_length >= width // 2 or (tight and self.yields)
        right = Content() if gone else self.right
        rule = ACTIVE if self.active else RULE
        ending = right.cell_length + 3 if right else 1
        left = self.left.truncate(max(0, width - ending - 5), ellipsis=True)
        fill = "─" * max(0, width - left.cell_length - ending - 3)
        parts: list[Content | str | tuple[str, str]] = [("─ ", rule), left, (f" {fill}", rule)]
        if right:
            parts += [" ", right]
        parts.append((" ─" if right else "─", rule))
        return Content.assemble(*parts)

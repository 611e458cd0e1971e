"""All keys, read from the bindings themselves, so that it can't be out of date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingsMap, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.attachments import PHASES
from tui.screens.environment import ENVIRONMENT_KEYS
from tui.screens.keys import LOG_KEYS, REMOTE_KEYS, SERVICE_KEYS
from tui.screens.requests import REQUESTS_KEYS
from tui.states import AT_PROMPT, COLOURS, LOOKS, Look
from tui.widgets.log_view import LogView
from tui.widgets.service_table import ServiceTable


class HelpScreen(ModalScreen[None]):
    """Shows the keys, and what the glyphs mean."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "leave", "close"),
        Binding("j,down", "scroll(1)", "down", show=False),
        Binding("k,up", "scroll(-1)", "up", show=False),
        Binding("pagedown,space", "scroll(10)", "a page down", show=False),
        Binding("pageup", "scroll(-10)", "a page up", show=False),
    ]

    def __init__(self, everywhere: Sequence[BindingType]) -> None:
        super().__init__()
        self._everywhere = everywhere

    def compose(self) -> ComposeResult:
        """A text in a frame."""
        with VerticalScroll(id="help") as frame:
            frame.border_title = "keys"
            frame.border_subtitle = "esc closes"
            yield Static(id="help-text")

    def on_resize(self, event: events.Resize) -> None:
        """One column or two."""
        text = self._text(event.size.width - 12)
        self.query_one("#help-text", Static).update(text)

    def action_leave(self) -> None:
        """Close."""
        self.dismiss()

    def action_scroll(self, lines: int) -> None:
        """Scroll."""
        self.query_one("#help").scroll_relative(y=lines, animate=False)

    def _text(self, width: int) -> Content:
        sections = [
            _section("the chosen service", SERVICE_KEYS),
            _section("logs", LOG_KEYS),
            _section("everywhere", self._everywhere),
            _section("the remote", REMOTE_KEYS),
            _section("moving", [*ServiceTable.BINDINGS]),
            _section("moving in the logs", [*LogView.BINDINGS]),
            _section("environment", ENVIRONMENT_KEYS),
            _section("requests", REQUESTS_KEYS),
            _looks("states", {str(state): look for state, look in LOOKS.items()} | {"at prompt": AT_PROMPT}),
            _looks("attachments", PHASES),
        ]
        lines = [line for section in sections for line in section]
        left = [line for section in sections[:4] for line in section]
        right = lines[len(left) :]
        column = max(line.cell_length for line in left) + 3
        if column + max(line.cell_length for line in right) > width:
            return Content("\n").join(lines)
        both = zip_longest(left, right, fillvalue=Content())
        return Content("\n").join([Content.assemble(one, " " * (column - one.cell_length), two) for one, two in both])


def _section(title: str, bindings: Iterable[BindingType]) -> list[Content]:
    rows: dict[str, tuple[list[str], str]] = {}
    for _, binding in BindingsMap(bindings):
        keys, _ = rows.setdefault(binding.action, ([], binding.tooltip or binding.description))
        keys.append(key_name(binding))
    lines = [Content.styled(title, "bold $text-primary")]
    for keys, meaning in rows.values():
        lines.append(Content.assemble((f"  {' '.join(keys):<13}", "$text-accent"), meaning))
    return [*lines, Content()]


def _looks(title: str, of: Mapping[str, Look]) -> list[Content]:
    looks = [Content.styled(f"{look.glyph} {name}", COLOURS[look.tone]) for name, look in of.items()]
    lines = [Content.styled(title, "bold $text-primary")]
    for n in range(0, len(looks), 3):
        cells = [Content.assemble(cell, " " * (15 - cell.cell_length)) for cell in looks[n : n + 3]]
        lines.append(Content.assemble("  ", *cells))
    return [*lines, Content()]


def key_name(binding: Binding) -> str:
    """How a key is written: ctrl+p, G, /, ↑."""
    names = {
        "up": "↑",
        "down": "↓",
        "left": "←",
        "right": "→",
        "escape": "esc",
        "pagedown": "pgdn",
        "pageup": "pgup",
        "slash": "/",
        "colon": ":",
        "question_mark": "?",
        "exclamation_mark": "!",
    }
    return names.get(binding.key, binding.key)

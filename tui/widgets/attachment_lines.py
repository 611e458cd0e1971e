"""What a service holds of the remote's traffic: each attachment in a line, and below it what there is to know."""

from __future__ import annotations

from collections.abc import Iterable

from textual import events
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from devloop.protocol import AttachmentStatus, ServiceStatus, earlier_in_words
from tui import attachments
from tui.connection import NOTED
from tui.formats import age, count
from tui.paragraphs import hanging
from tui.states import COLOURS


class AttachmentLines(Widget):
    """As high as it has lines, up to `most`; what does not fit is counted."""

    ALLOW_SELECT = False

    most: reactive[int] = reactive(5, layout=True)
    """Lines that it takes at most; 1 for a single line with the most telling of all."""
    lines: reactive[tuple[Content, ...]] = reactive(())

    def __init__(self) -> None:
        super().__init__()
        self._status: ServiceStatus | None = None
        self._now = 0

    def show(self, status: ServiceStatus | None, now: int) -> None:
        """Show what this service holds."""
        self._status, self._now = status, now
        self._compose_lines()

    def on_resize(self, event: events.Resize) -> None:
        """Reasons are wrapped."""
        self._compose_lines()

    def watch_most(self) -> None:
        """More or less room."""
        self._compose_lines()

    def _compose_lines(self) -> None:
        width = (self.size.width or self.app.size.width) - 1
        status = self._status
        each = [_lines(found, status.name, self._now, width) for found in status.attachments] if status else []
        lines = [line for several in each for line in several]
        if status:
            lines += _earlier(earlier_in_words(status.earlier), status.name, width)
        if status and status.attachments and self.most == 1 and len(lines) > 1:
            lines = [each[status.attachments.index(found)][0] for found in (attachments.telling(status),) if found]
        elif len(lines) > self.most:
            hidden = len(lines) - self.most + 1
            lines = [*lines[: self.most - 1], Content.styled(f"  … and {count(hidden, 'line')}", "$text-muted")]
        self.lines = tuple(lines)
        self.display = bool(lines)
        self.styles.height = len(lines)

    def render(self) -> Content:
        """The lines."""
        width = self.size.width - 1
        return Content("\n").join(
            [Content.assemble(" ", line.truncate(width, ellipsis=True)) for line in self.lines[: self.size.height]]
        )


def _earlier(found: Iterable[str], service: str, width: int, lead: str = "") -> list[Content]:
    """What is said of connections that don't lead to where a service is."""
    lines: list[Content] = []
    for text in found:
        said = Content.assemble((text, "$text-warning"), (f" (: move {service})", "$text-muted"))
        lines += hanging(Content.styled(f"{lead}{NOTED} ", "$text-warning"), said, width)
    return lines


def _lines(attachment: AttachmentStatus, service: str, now: int, width: int) -> list[Content]:
    shown = attachments.look(attachment.phase)
    colour = COLOURS[shown.tone]
    target = "" if attachment.target == service else f" {attachment.target}"
    first = Content.assemble(
        (f"{shown.glyph} {attachment.phase}", colour), "  ", (attachment.kind, "bold"), (target, "bold")
    )
    if attachment.routes:
        routes = " or ".join(map(attachments.route_words, attachment.routes))
        first = Content.assemble(first, (": ", "$text-muted"), routes)
    if attachment.phase not in attachments.OVER:
        numbers = f" · {attachments.rates(attachment)}" if attachment.routes else ""
        texts = (f"{numbers} · {age(now - attachment.since_at)}", numbers)
        facts = next((text for text in texts if first.cell_length + len(text) <= width), numbers)
        first = first.truncate(max(20, width - len(facts)), ellipsis=True)
        first = Content.assemble(first, (facts, "$text-muted"))
    lines = [first]
    said = [("", attachment.reason, colour)] if attachment.reason else []
    said += [(f"{NOTED} ", note, "$text-warning") for note in attachment.notes]
    if attachment.uncounted:
        text = f"connections from before may still lead to the original; not counted: {attachment.uncounted}"
        said.append((f"{NOTED} ", text, "$text-warning"))
    for lead, text, tone in said:
        lines += hanging(Content.styled(f"  {lead}", tone), Content.styled(text, tone), width)
    return lines + _earlier(earlier_in_words(attachment.earlier, attachment.earlier_rate), service, width, "  ")

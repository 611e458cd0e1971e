"""The line in which a filter or a search is typed."""

from __future__ import annotations

import re
import warnings
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Label


class PromptInput(Input):
    """An input whose Enter is worth a mention."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "submit", "apply", show=True)]


class Prompt(Horizontal):
    """Asks for a regular expression, and says at once what is wrong with one."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "cancel")]

    class Changed(Message):
        """A pattern that compiles; None if the line is empty."""

        def __init__(self, kind: str, pattern: re.Pattern[str] | None, *, final: bool) -> None:
            super().__init__()
            self.kind = kind
            self.pattern = pattern
            self.final = final
            """Enter was pressed."""

    class Cancelled(Message):
        """Escape was pressed."""

        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

    kind = ""

    def compose(self) -> ComposeResult:
        """A name, the input, and room for an error."""
        yield Label(id="prompt-kind")
        yield PromptInput(compact=True, id="prompt-input")
        yield Label(id="prompt-error")

    def ask(self, kind: str, text: str) -> None:
        """Open for `kind` (filter or search), with a text to begin with."""
        self.kind = kind
        self.display = True
        self.query_one("#prompt-kind", Label).update(f" {kind} ")
        self.query_one("#prompt-error", Label).update("")
        field = self.query_one(Input)
        field.cursor_blink = False  # a screen at rest is at rest
        with field.prevent(Input.Changed):
            field.value = text
        field.cursor_position = len(text)
        field.placeholder = "a regular expression"
        field.focus()

    def close(self) -> None:
        """Disappear."""
        self.display = False

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self._offer(event.value, final=False)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        event.stop()
        self._offer(event.value, final=True)

    def action_cancel(self) -> None:
        """Leave all as it was."""
        self.post_message(self.Cancelled(self.kind))

    def _offer(self, text: str, *, final: bool) -> None:
        error = ""
        pattern: re.Pattern[str] | None = None
        try:
            pattern = compile_pattern(text)
        except re.error as problem:
            place = f" at {problem.pos + 1}" if problem.pos is not None else ""
            error = f"✗ {problem.msg}{place} "
        except (OverflowError, RecursionError):
            error = "✗ too large "
        self.query_one("#prompt-error", Label).update(Content(error))
        if not error:
            self.post_message(self.Changed(self.kind, pattern, final=final))


def compile_pattern(text: str) -> re.Pattern[str] | None:
    """Ignores case unless there is a capital letter, as ripgrep's smart case. Raises re.error."""
    if not text:
        return None
    capital = any(c.isupper() for c in re.sub(r"\\.", "", text))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `[[` is fine today
        return re.compile(text, 0 if capital else re.IGNORECASE)

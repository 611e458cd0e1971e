"""A service's terminal in a pane: a screen that a program draws, and the keyboard that it gets."""

from __future__ import annotations

import asyncio
import base64
import re
from functools import cache
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.keys import key_to_character
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from devloop.control.client import ControlClient
from devloop.control.keyboard import Leaving, LineEditor
from devloop.errors import DevloopError
from devloop.protocol import TerminalOutput
from tui.keycodes import encode
from tui.session import PAINT_INTERVAL, Session

if TYPE_CHECKING:
    from tui.emulator import Emulator

TAIL = 64 * 1024
"""Bytes to begin with, of what was printed before."""
CHUNK = 16 * 1024
"""Bytes of a paste that are sent at once."""
_NAMES = {"brown": "yellow", "brightbrown": "bright_yellow", "bfightmagenta": "bright_magenta"}  # as pyte spells them


class TerminalView(Widget, can_focus=True):
    """Shows one service's terminal at a time, and sends it every key but Ctrl-P Ctrl-Q."""

    ALLOW_SELECT = False

    class Left(Message):
        """The keyboard is given back."""

    class Refused(Message):
        """What was typed did not arrive."""

        def __init__(self, error: DevloopError) -> None:
            super().__init__()
            self.error = error

    def __init__(self, session: Session, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._session = session
        self._service = ""
        self._tty = False
        self._emulator: Emulator | None = None
        self._leaving = Leaving()
        self._editor = LineEditor()
        self._typed: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._scheduled = False

    @property
    def service(self) -> str:
        """The one that has the keyboard; empty if none has it."""
        return self._service

    def open(self, service: str, *, tty: bool) -> None:
        """Give the keyboard to a service."""
        from tui.emulator import Emulator  # a tenth of a second that only who comes here pays

        self._service, self._tty = service, tty
        self._emulator = Emulator(max(1, self.size.width), max(1, self.size.height), self._answer)
        self._emulator.lines_only = not tty
        self._leaving, self._editor, self._typed = Leaving(), LineEditor(), asyncio.Queue()
        self.focus()
        self.run_worker(self._attend(service), group="terminal", exclusive=True)

    def close(self) -> None:
        """Take it back."""
        self._service = ""
        self._emulator = None
        self.workers.cancel_group(self, "terminal")

    def changed(self, *, tty: bool) -> None:
        """Its next process has a terminal, or has none any more."""
        self._tty = tty
        if self._emulator is not None:
            self._emulator.lines_only = not tty

    # What comes and goes

    async def _attend(self, service: str) -> None:
        try:
            async with await ControlClient.connect(self._session.socket) as client:
                columns, rows = self.size.width, self.size.height
                await client.call("terminal_open", service=service, columns=columns, rows=rows, tail=TAIL)
                async with asyncio.TaskGroup() as group:
                    typing = group.create_task(self._send(client, service, self._typed))
                    async for event in client.events():
                        if isinstance(event, TerminalOutput) and self._emulator is not None:
                            self._emulator.feed(base64.b64decode(event.data))
                            self._paint_soon()
                    typing.cancel()
        except* DevloopError:
            pass  # the session's other connection notices too, and the screen says so
        if self._service == service:
            self.post_message(self.Left())

    async def _send(self, client: ControlClient, service: str, typed: asyncio.Queue[tuple[str, bytes]]) -> None:
        while True:
            method, data = await typed.get()
            try:
                match method:
                    case "terminal_type":
                        for start in range(0, len(data), CHUNK):
                            text = base64.b64encode(data[start : start + CHUNK]).decode()
                            await client.call(method, service=service, data=text)
                    case "terminal_resize":
                        await client.call(method, service=service, columns=self.size.width, rows=self.size.height)
                    case _:
                        await client.call(method, service=service)
            except DevloopError as error:
                self.post_message(self.Refused(error))

    def _answer(self, text: str) -> None:
        if self.has_focus:
            self._typed.put_nowait(("terminal_type", text.encode()))

    def _type(self, data: bytes) -> None:
        data, leave = self._leaving.feed(data)
        if not self._tty:
            edited = self._editor.feed(data)
            if self._emulator is not None and edited.echo:
                self._emulator.feed(edited.echo)
                self._paint_soon()
            if edited.interrupt:
                self._typed.put_nowait(("terminal_interrupt", b""))
            data = edited.send
        if data:
            self._typed.put_nowait(("terminal_type", data))
        if leave:
            self.post_message(self.Left())

    async def _on_key(self, event: events.Key) -> None:
        if self._emulator is None:
            return
        event.stop()
        event.prevent_default()
        self._type(
            encode(
                event.key, event.character or key_to_character(event.key), application=self._emulator.application_keys
            )
        )

    async def _on_paste(self, event: events.Paste) -> None:
        if self._emulator is None:
            return
        event.stop()
        event.prevent_default()
        text = event.text.replace("\r\n", "\n").replace("\n", "\r").replace("\x1b", "").encode()
        self._type(b"\x1b[200~" + text + b"\x1b[201~" if self._tty and self._emulator.marks_pastes else text)

    def on_resize(self) -> None:
        """The program is told."""
        if self._emulator is not None and self.size.width and self.size.height:
            self._emulator.resize(self.size.width, self.size.height)
            self._typed.put_nowait(("terminal_resize", b""))
            self.refresh()

    # What is seen

    def _paint_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.set_timer(PAINT_INTERVAL / 2, self._paint)

    def _paint(self) -> None:
        self._scheduled = False
        self.refresh()

    def on_focus(self) -> None:
        """The cursor is full."""
        self.refresh()

    def on_blur(self) -> None:
        """The cursor is gone."""
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line of the program's screen."""
        width, base = self.size.width, self.rich_style
        if self._emulator is None or y >= self._emulator.size[1]:
            return Strip.blank(width, base)
        cursor = self._emulator.cursor if self.has_focus else None
        segments: list[Segment] = []
        text, style = "", base
        for x, cell in enumerate(self._emulator.row(y)):
            its = base + _style(*cell[1:])
            if cursor == (x, y):
                its += Style(reverse=not cell.reverse)
            if its != style and text:
                segments.append(Segment(text, style))
                text = ""
            text, style = text + cell.data, its
        if text:
            segments.append(Segment(text, style))
        return Strip(segments).adjust_cell_length(width, base)


@cache
def _style(
    fg: str, bg: str, bold: bool, italics: bool, underscore: bool, strikethrough: bool, reverse: bool, blink: bool
) -> Style:
    """Of a cell, as pyte has it. What it leaves open is the pane's."""
    return Style(
        color=_colour(fg),
        bgcolor=_colour(bg),
        bold=bold or None,
        italic=italics or None,
        underline=underscore or None,
        strike=strikethrough or None,
        reverse=reverse or None,
        blink=blink or None,
    )


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    name = _NAMES.get(name, name)
    if name.startswith("bright") and "_" not in name:
        return f"bright_{name.removeprefix('bright')}"
    return f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else name

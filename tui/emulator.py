"""A terminal's screen, from the bytes that a program prints: what a terminal view shows. Knows no widget.

pyte does the emulation. What pyte takes for something else, or stumbles over, is kept from it here.
"""

from __future__ import annotations

import codecs
import contextlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import pyte
import pyte.modes
from pyte.screens import Char

_UNKNOWN = re.compile(
    r"\x1b\[[<>=][0-9;:]*[ -/]*[@-~]"  # xterm's keyboard settings: pyte drops the sign
    r"|\x1b\[[0-9;?]*[ !\"'*][@-~]"  # with an intermediate byte, such as DECSTR, DECSCUSR
    r"|\x1b[PX^_][^\x1b\x07]*(?:\x1b\\|\x07)"  # DCS, SOS, PM, APC strings, which pyte would print
)
_UNFINISHED = re.compile(r"\x1b(?:\[[<>=0-9;:?]{0,4096}[ -/]{0,9}|[PX^_][^\x1b\x07]{0,4096}\x1b?)?\Z")
_APPLICATION_KEYS = 1 << 5  # DECCKM, as pyte shifts private modes
_PASTING = 2004 << 5


def _tolerant(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same for sequences with more parameters than pyte knows, or with a `?` that it does not expect."""
    parameters = inspect.signature(method).parameters.values()
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    most = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    known = {p.name for p in parameters}

    def call(self: Screen, *values: Any, **options: Any) -> None:
        if options.get("private") and not any_name and "private" not in known:
            return  # another sequence with the same letter
        with contextlib.suppress(UnboundLocalError):  # a parameter that pyte has no branch for, as in `ESC [ 7 K`
            method(self, *(values if any_number else values[: most - 1]), **options)

    return call


class Screen(pyte.Screen):
    """pyte's, which survives whatever a program prints."""

    def __init__(self, columns: int, rows: int, answer: Callable[[str], None]) -> None:
        self._answer = answer
        super().__init__(columns, rows)

    def write_process_input(self, data: str) -> None:
        """What the program has asked the terminal."""
        self._answer(data)


for _name in {*pyte.Stream.csi.values(), *pyte.Stream.escape.values(), *pyte.Stream.sharp.values()}:
    setattr(Screen, _name, _tolerant(getattr(pyte.Screen, _name)))


class Emulator:
    """Feeds a screen. `answer` gets what the program asks for, such as the cursor's position."""

    def __init__(self, columns: int, rows: int, answer: Callable[[str], None] = lambda _: None) -> None:
        self.lines_only = False
        """The program writes into a pipe: a line feed is a new line (what a terminal's driver does otherwise)."""
        self._screen = Screen(columns, rows, answer)
        self._stream = pyte.Stream(self._screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> None:
        """Take in output, however it is cut."""
        text = self._rest + self._decoder.decode(data)
        cut = _UNFINISHED.search(text)
        self._rest = text[cut.start() :] if cut else ""
        text = _UNKNOWN.sub("", text[: cut.start()] if cut else text)
        if self.lines_only:
            text = text.replace("\r\n", "\n").replace("\n", "\r\n")
        try:
            self._stream.feed(text)
        except ValueError:  # a number of more digits than Python reads; pyte's parser has ended with it
            self._stream = pyte.Stream(self._screen)

    def resize(self, columns: int, rows: int) -> None:
        """The view has another size. What no longer fits goes at the top, and never the line with the cursor."""
        screen = self._screen
        spare = screen.lines - 1 - screen.cursor.y
        if rows < screen.lines and spare > 0:
            # pyte drops lines at the top even where there are empty ones below the cursor.
            keep = min(spare, screen.lines - rows)
            screen.resize(lines=screen.lines, columns=columns)
            for y in range(screen.lines - keep, screen.lines):
                screen.buffer.pop(y, None)
            screen.lines -= keep
            screen.set_margins()
        screen.resize(lines=rows, columns=columns)
        screen.cursor.x = min(screen.cursor.x, columns - 1)
        screen.cursor.y = min(screen.cursor.y, rows - 1)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self._screen.columns, self._screen.lines

    @property
    def cursor(self) -> tuple[int, int] | None:
        """Column and row, if it is shown."""
        cursor = self._screen.cursor
        return None if cursor.hidden else (min(cursor.x, self._screen.columns - 1), cursor.y)

    @property
    def application_keys(self) -> bool:
        """Whether arrow keys are sent as `ESC O`."""
        return _APPLICATION_KEYS in self._screen.mode

    @property
    def marks_pastes(self) -> bool:
        """Whether pasted text is to stand between markers."""
        return _PASTING in self._screen.mode

    def row(self, y: int) -> list[Char]:
        """The cells of a line. The second cell of a wide character is empty."""
        line = self._screen.buffer[y]
        return [line[x] for x in range(self._screen.columns)]

    def text(self) -> list[str]:
        """The lines, without colours."""
        return list(self._screen.display)

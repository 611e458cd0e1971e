"""Log lines as text: for `devloop logs` and `devloop up --headless`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from devloop.commands.common import print_json
from devloop.escapes import RESET, is_plain, name, overwritten
from devloop.escapes import line as shown
from devloop.protocol import LogLine
from devloop.records import LevelFilter
from devloop.terminal import keeps_colour, styled, wants_colour

_DIM = "\x1b[2m"
_PREFIXES = ("\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[31m")
_MARKS = {"build": "build ", "devloop": "devloop "}

OFTEN, SELDOM = 1.0, 5.0
"""Seconds between two states of one line that has no end yet: the first ten, and later ones."""


class LinePrinter:
    """Turns lines into what is printed, each behind its service's name.

    Colours of services are kept as they wrote them, unless NO_COLOR is set; no other sequence passes.
    """

    def __init__(self, *, json: bool = False, width: int = 0, level: str | None = None) -> None:
        self.width = width
        self.named = True
        """Whether each line begins with its service's name."""
        self._json = json
        self._filter = None if level is None else LevelFilter(level)
        self._colour = wants_colour(sys.stdout)
        self._keep = keeps_colour(sys.stdout)
        self._colours: dict[str, str] = {}
        self._unfinished: dict[tuple[str, str], tuple[str, int, int]] = {}
        """Service and stream → the state of a line without an end that was printed, when, and after how many."""

    def print(self, lines: Iterable[LogLine]) -> None:
        """Print them, oldest first."""
        for line in lines:
            if not self._json:
                styled(self.line(line.service, line.at, line.stream, line.text, partial=line.partial))
            elif not line.partial and self._passes(line.service, line.stream, line.text):
                print_json({**line.to_json(), "level": line.level})
        sys.stdout.flush()

    def chunk(self, service: str, at: int, stream: str, lines: list[bytes], *, partial: bool = False) -> str:
        """Lines that came together, as text; each ends with a line end."""
        joined = b"\n".join(lines)
        if self._filter is None and not self._unfinished and not partial and is_plain(joined):
            # The way of a flood: nothing is looked at line by line.
            prefix, end = self._around(service, stream)
            return prefix + joined.decode().replace("\n", f"{end}\n{prefix}") + f"{end}\n"
        texts = joined.decode("utf-8", "replace").split("\n")
        return "".join([self.line(service, at, stream, text, partial=partial) for text in texts])

    def line(self, service: str, at: int, stream: str, text: str, *, partial: bool = False) -> str:
        """One line as text with its line end; empty if it is not to be shown, or is already."""
        if not self._passes(service, stream, text):
            return ""
        if (partial or self._unfinished) and self._is_shown(service, at, stream, overwritten(text), partial=partial):
            return ""
        prefix, end = self._around(service, stream)
        return f"{prefix}{shown(text, colours=self._keep)}{end}\n"

    def _passes(self, service: str, stream: str, text: str) -> bool:
        return self._filter is None or self._filter.passes(service, stream, text)

    def _is_shown(self, service: str, at: int, stream: str, text: str, *, partial: bool) -> bool:
        """Whether this line stands there already, or is a state that comes too soon after the last."""
        last, since, count = self._unfinished.get((service, stream), ("", 0, 0))
        if not partial:
            self._unfinished.pop((service, stream), None)
            return bool(count) and last == text
        if count and (last == text or at - since < (OFTEN if count < 10 else SELDOM) * 1e9):
            return True
        self._unfinished[service, stream] = text, at, count + 1
        return False

    def _around(self, service: str, stream: str) -> tuple[str, str]:
        if not self.named:
            return "", ""
        service = name(service)  # a pod's, too
        self.width = max(self.width, len(service))
        mark = _MARKS.get(stream, "")
        if not self._colour:
            return f"{service:{self.width}} | {mark}", ""
        hue = self._colours.setdefault(service, _PREFIXES[len(self._colours) % len(_PREFIXES)])
        prefix = f"{hue}{service:{self.width}} |{RESET} "
        return (f"{prefix}{_DIM}{mark}", RESET) if mark else (prefix, "")

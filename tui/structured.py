"""A JSON log line as a person reads it: time, level, message, and the rest dimmed. Knows no screen."""

from __future__ import annotations

from functools import lru_cache

from devloop.records import record_of
from tui.ansi import plain

_TONES = {"warning": "tone--warn", "error": "tone--bad", "fatal": "tone--bad"}
_WIDEST = 7

Piece = tuple[str, str]
"""Text, and the component class that gives it its colour; empty for the pane's own."""


@lru_cache(maxsize=2048)
def pieces(text: str) -> tuple[Piece, ...]:
    """The parts of a JSON line, in the order in which they are shown; none for any other line."""
    if text[:1] not in "{ \x1b\t":
        return ()
    record = record_of(text)
    if record is None:
        return ()
    found: list[Piece] = []
    if record.time:
        found.append((f"{record.time} ", "tone--quiet"))
    if record.level:
        found.append((f"{record.level.upper():{_WIDEST}} ", _TONES.get(record.level, "tone--quiet")))
    found.append((_one_line(record.message), ""))
    found += [(f" {_one_line(key)}={_one_line(value)}", "tone--quiet") for key, value in record.fields.items()]
    return tuple(found)


def _one_line(text: str) -> str:
    return plain(text.replace("\n", " ⏎ ").replace("\r", ""))


def shown(text: str, *, readable: bool) -> str:
    """What a line looks like without colours."""
    parts = pieces(text) if readable else ()
    return "".join(part for part, _ in parts) if parts else plain(text)

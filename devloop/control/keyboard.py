"""What clients of a terminal do with keys before they send them: the way back, and the editing of a line.

Pure: bytes in, bytes out.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

LEAVE = b"\x10\x11"
"""Ctrl-P Ctrl-Q, which gives the keyboard back as `docker attach` does."""
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)  # ECMA-48, 5.4


class Leaving:
    """Finds LEAVE in what is typed. Its first key is held back until the next one tells."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be passed on, and whether LEAVE was typed; what follows it is dropped."""
        data = self._held + data
        before, found, _ = data.partition(LEAVE)
        if found:
            self._held = b""
            return before, True
        self._held = LEAVE[:1] if data.endswith(LEAVE[:1]) else b""
        return data.removesuffix(self._held), False


@dataclass(frozen=True, slots=True)
class Edited:
    """What came of some keys."""

    echo: bytes
    """To be shown, for a terminal in raw mode."""
    send: bytes
    """Whole lines."""
    interrupt: bool = False
    """Ctrl-C was typed."""


class LineEditor:
    """Makes lines of keys, for a service that reads from a pipe: there is no terminal that would do it.

    Backspace takes back a character, Ctrl-W a word, Ctrl-U the line. Ctrl-D does nothing: a pipe that was closed can't
    be opened again.
    """

    def __init__(self) -> None:
        self._line = b""

    def feed(self, data: bytes) -> Edited:
        """Take in keys. Bytes of a character that is not whole yet wait."""
        echo, send, interrupt = bytearray(), bytearray(), False
        for byte in _SEQUENCE.sub(b"", data):
            match byte:
                case 0x0D | 0x0A:
                    send += self._line + b"\n"
                    echo += b"\r\n"
                    self._line = b""
                case 0x03:
                    interrupt = True
                    echo += b"^C\r\n"
                    self._line = b""
                case 0x7F | 0x08:
                    echo += self._cut(len(self._line.decode(errors="ignore")) - 1)
                case 0x15:
                    echo += self._cut(0)
                case 0x17:
                    text = self._line.decode(errors="ignore").rstrip()
                    echo += self._cut(len(text) - len(re.split(r"\s", text)[-1]))
                case 0x09:
                    self._line += b"\t"
                    echo += b" "
                case _ if byte >= 0x20:
                    self._line += bytes((byte,))
                    echo += bytes((byte,))
        return Edited(bytes(echo), bytes(send), interrupt)

    def _cut(self, length: int) -> bytes:
        """Shorten the line to so many characters; what wipes the rest off the screen."""
        text = self._line.decode(errors="ignore")
        gone = text[max(0, length) :]
        self._line = text[: max(0, length)].encode()
        return b"\b \b" * sum(_cells(character) for character in gone)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1  # UAX #11

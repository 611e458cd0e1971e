r"""The one place through which words that are not devloop's own reach a terminal.

A terminal obeys what it is shown: it clears itself, moves the cursor, sets its title, fills the clipboard, answers
as if the user had typed (ECMA-48, and xterm's ctlseqs). Of a service's log, colours and text styles (SGR) pass. Of
names, messages and errors nothing passes. Bidi controls, which turn the order of letters around, never pass. All
functions are cheap for text without control characters.
"""

from __future__ import annotations

import re

RESET = "\x1b[0m"

_SEQUENCE = (
    r"(?:\x1b\[|\x9b)(?:(?P<sgr>[0-9;:]*)m|[0-?]*[ -/]*[@-~]?)"  # a control sequence, or the beginning of one
    # Strings (OSC, DCS, SOS, PM, APC): titles, links, the clipboard. One that has no end here loses its introducer
    # alone, so that no text is lost.
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"  # short escapes, such as ESC c, which resets the terminal
)
_BIDI = r"\u202a-\u202e\u2066-\u2069"
"""Embeddings, overrides and isolates (UAX #9): they show what is written in another order, past the line's end too."""
_FOR_LINES = re.compile(_SEQUENCE + rf"|[\x00-\x08\x0a-\x1f\x7f-\x9f{_BIDI}]")
_FOR_WORDS = re.compile(_SEQUENCE + rf"|[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}]")
_FOR_SCREENS = re.compile(_FOR_WORDS.pattern)

_ANEW = re.compile(r"\r|(?:\x1b\[|\x9b)(?:[01]?G|[0-9]*[EF]|2K|u)|\x1b8")
"""What the line begins anew after: a carriage return, and what programs say in its place."""
_GAP = re.compile(r"(?:\x1b\[|\x9b)(?:([0-9]*)C|[0-9]+G|[0-9;]*[Hf])")
"""The cursor goes on to the right: programs lay columns out so."""
_BACK = re.compile(r"(?:\x1b\[|\x9b)([0-9]*)D")
_CELL = re.compile(_SEQUENCE + r"|.", re.DOTALL)
_WIDEST = 200
"""Cells that one step to the side may be."""

_HARMLESS = bytes({9, 10, *range(32, 256)} - {127})
_C1 = re.compile(rb"\xc2[\x80-\x9f]")


def line(text: str, *, colours: bool = True) -> str:
    """One line of a log as a person is to see it: what it says in the end, with no sequence but colours.

    What a progress bar has overwritten is gone. Colours are ended where the line ends.
    """
    if text.isprintable():
        return text
    text = _FOR_LINES.sub(_colours if colours else "", overwritten(text))
    return text + RESET if "\x1b" in text and not text.endswith((RESET, "\x1b[m")) else text


def plain(text: str) -> str:
    """The same without colours: what there is to search, and to recognise."""
    return line(text, colours=False)


def words(text: str) -> str:
    """A name, a message or an error: nothing passes but line ends and tabs."""
    return text if text.isprintable() else _FOR_WORDS.sub("", text)


def name(text: str) -> str:
    """The same on one line: a name, or a cell of a table, that could otherwise pretend to be further lines of it."""
    return text if text.isprintable() else " ".join(_FOR_WORDS.sub("", text).split())


def screen(text: str) -> str:
    """Text with colours, devloop's own or a log's: these pass, line ends and tabs."""
    return text if text.isprintable() else _FOR_SCREENS.sub(_colours, text)


def is_plain(data: bytes) -> bool:
    """Whether lines joined by their ends are fit for any terminal as they are; may be False for some that are."""
    return data.isascii() and not data.translate(None, _HARMLESS)


def overwritten(text: str) -> str:
    r"""What stands there in the end where `\r`, `\b` or the cursor has gone back: the last state of a bar."""
    if not any(mark in text for mark in "\r\b\x1b\x9b"):
        return text
    states = _ANEW.split(text)
    if len(states) > 1:
        said = (state for state in reversed(states) if _FOR_LINES.sub("", state).strip())
        text = next(said, "")
    text = _GAP.sub(_gap, text)
    text = _BACK.sub(lambda found: "\b" * _steps(found[1]), text)
    return _backspaced(text) if "\b" in text else text


def _gap(found: re.Match[str]) -> str:
    if found[1] is None and not _FOR_LINES.sub("", found.string[: found.start()]):
        return ""  # to a column or home, where nothing stands yet
    return " " * _steps(found[1])


def _steps(number: str | None) -> int:
    # A number may be as long as the line, and Python reads no more than 4,300 digits.
    return _WIDEST if number and len(number) > 9 else min(_WIDEST, int(number or 1))


def _backspaced(text: str) -> str:
    cells: list[str] = []
    behind: list[str] = []  # cells from the cursor on, the nearest last
    for found in _CELL.finditer(text):
        one = found[0]
        if one == "\b":
            while cells:
                behind.append(cells.pop())
                if behind[-1][0] not in "\x1b\x9b":
                    break
        else:
            cells.append(one)
            while behind and one[0] not in "\x1b\x9b":
                if behind.pop()[0] not in "\x1b\x9b":
                    break
    return "".join(cells) + "".join(reversed(behind))


def _colours(found: re.Match[str]) -> str:
    sgr = found["sgr"]
    return "" if sgr is None else f"\x1b[{sgr}m"

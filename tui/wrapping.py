"""Where a long line is broken, and how far its further rows are indented. Knows no screen."""

from __future__ import annotations

import re

from rich.cells import cell_len, get_character_cell_size

_WORD = re.compile(r"[\w.\-/:@%+~#?&=,]+")
"""What a double click takes: paths, addresses and `NAME=value` too, as terminals do."""


def indent_of(text: str, prefix: int, width: int) -> int:
    """Cells by which the second row and those after it are indented, so that they stand below what they continue.

    That is the line's prefix (time, service) of so many characters and the blanks that its text begins with; at most
    half of the width, so that there is room for words.
    """
    body = text[prefix:]
    blanks = len(body) - len(body.lstrip(" ")) if body.strip() else 0
    return min(cell_len(text[:prefix]) + blanks, width // 2)


def spans(text: str, width: int, indent: int) -> list[tuple[int, int]]:
    """The rows of a line, as (begin, end) in characters; the first is `width` cells wide, the others less `indent`.

    A character that is two cells wide is never cut in half.
    """
    width, further = max(1, width), max(1, width - indent)
    if text.isascii():
        ends = range(width, len(text) + further, further) if len(text) > width else (len(text),)
        begins = (0, *ends[:-1])
        return [(begin, min(end, len(text))) for begin, end in zip(begins, ends, strict=True)]
    found, begin, cells, room = list[tuple[int, int]](), 0, 0, width
    for n, character in enumerate(text):
        size = get_character_cell_size(character)
        if cells + size > room and n > begin:
            found.append((begin, n))
            begin, cells, room = n, 0, further
        cells += size
    return [*found, (begin, len(text))]


def height(text: str, width: int, indent: int) -> int:
    """How many rows that makes."""
    if not text.isascii():
        return len(spans(text, width, indent))
    width, further = max(1, width), max(1, width - indent)
    return 1 + max(0, -(-(len(text) - width) // further))


def index_at(text: str, cells: int) -> int:
    """The number of the character that stands so many cells from the left."""
    if text.isascii():
        return cells
    for n, character in enumerate(text):
        if cells <= 0:
            return n
        cells -= get_character_cell_size(character)
    return len(text) + max(0, cells)


def word_at(text: str, index: int) -> tuple[int, int]:
    """The word at a character as (begin, end), without the punctuation after it; empty on a blank or past the end."""
    for match in _WORD.finditer(text):
        end = match.end() - (len(match[0]) - len(match[0].rstrip(".:,?")))
        if match.start() <= index < end:
            return match.start(), end
    inside = 0 <= index < len(text) and not text[index].isspace()
    return index, index + inside

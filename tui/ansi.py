"""A log line's ANSI sequences as styled runs of text.

Only what is on screen is parsed, and only colours and text styles (SGR, ECMA-48 8.3.117) have a meaning here:
cursor movement, titles and links would break the layout of the pane and are taken out.
"""

from __future__ import annotations

import re
from functools import lru_cache

from rich.color import Color
from rich.style import Style

from devloop import escapes

_SGR = re.compile(r"\x1b\[([0-9;:]*)m")

_FLAGS: dict[int, str] = {
    1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "reverse", 8: "conceal", 9: "strike",
    21: "underline2", 22: "not bold not dim", 23: "not italic", 24: "not underline", 27: "not reverse",
    28: "not conceal", 29: "not strike", 53: "overline", 55: "not overline",
}  # fmt: skip

Run = tuple[str, Style]


def plain(text: str) -> str:
    """The text that a person reads: no sequences, no control characters, tabs expanded."""
    return text if text.isprintable() else escapes.plain(text).expandtabs(8)


def runs(text: str) -> list[Run]:
    """The same text in runs of one style each; joined, they are `plain(text)`."""
    text = escapes.line(text)
    if "\x1b" not in text:
        return [(text.expandtabs(8), Style.null())]
    found: list[Run] = []
    style, position, column = Style.null(), 0, 0
    for match in (*_SGR.finditer(text), None):
        piece = text[position : match.start() if match else len(text)]
        if piece:
            # Tab stops count from the line's beginning, not from the run's.
            piece = (" " * (column % 8) + piece).expandtabs(8)[column % 8 :]
            column += len(piece)
            found.append((piece, style))
        if match:
            position = match.end()
            style = _apply(style, match[1])
    return found


@lru_cache(maxsize=4096)
def _apply(style: Style, parameters: str) -> Style:
    codes = [int(code) if code.isdigit() and len(code) < 5 else 0 for code in re.split("[;:]", parameters)]
    position = 0
    while position < len(codes):
        code = codes[position]
        position += 1
        if code == 0:
            style = Style.null()
        elif code in _FLAGS:
            style += Style.parse(_FLAGS[code])
        elif code in (38, 48):
            color, taken = _extended(codes[position:])
            position += taken
            if color is not None:
                style += Style(color=color) if code == 38 else Style(bgcolor=color)
        elif 30 <= code <= 37 or 90 <= code <= 97:
            style += Style(color=Color.from_ansi(code - 30 if code < 90 else code - 82))
        elif 40 <= code <= 47 or 100 <= code <= 107:
            style += Style(bgcolor=Color.from_ansi(code - 40 if code < 100 else code - 92))
        elif code == 39:  # the pane's own colours, not the terminal's: those may be the same as what lies below
            style = style.without_color + Style(bgcolor=style.bgcolor)
        elif code == 49:
            style = style.without_color + Style(color=style.color)
    return style


def _extended(codes: list[int]) -> tuple[Color | None, int]:
    match codes:
        case [5, number, *_]:
            return Color.from_ansi(min(number, 255)), 2
        case [2, red, green, blue, *_]:
            return Color.from_rgb(min(red, 255), min(green, 255), min(blue, 255)), 4
    return None, len(codes)

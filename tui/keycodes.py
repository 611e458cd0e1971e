"""Keys as Textual names them → the bytes that xterm sends for them ("PC-Style Function Keys" of its documentation)."""

from __future__ import annotations

import re
from collections.abc import Mapping

_CURSOR: Mapping[str, str] = {"up": "A", "down": "B", "right": "C", "left": "D", "home": "H", "end": "F"}
_NUMBERED: Mapping[str, str] = {
    "insert": "2",
    "delete": "3",
    "pageup": "5",
    "pagedown": "6",
    "f5": "15",
    "f6": "17",
    "f7": "18",
    "f8": "19",
    "f9": "20",
    "f10": "21",
    "f11": "23",
    "f12": "24",
}
_LETTERED: Mapping[str, str] = {"f1": "P", "f2": "Q", "f3": "R", "f4": "S"}
_PLAIN: Mapping[str, bytes] = {
    "enter": b"\r",
    "tab": b"\t",
    "escape": b"\x1b",
    "backspace": b"\x7f",
    "space": b" ",
    "shift+tab": b"\x1b[Z",
    "ctrl+backspace": b"\x17",
    "ctrl+space": b"\x00",
    "ctrl+at": b"\x00",
    "ctrl+backslash": b"\x1c",
    "ctrl+right_square_bracket": b"\x1d",
    "ctrl+circumflex_accent": b"\x1e",
    "ctrl+underscore": b"\x1f",
    "shift+enter": b"\r",
    "alt+enter": b"\x1b\r",
    "alt+backspace": b"\x1b\x7f",
}
_MODIFIERS: Mapping[str, int] = {"shift": 1, "alt": 2, "ctrl": 4}


def encode(key: str, character: str | None, *, application: bool = False) -> bytes:
    """What a key sends; nothing for one that has no meaning in a terminal.

    `application`: the program has asked for cursor keys of its own kind (DECCKM).
    """
    if key in _PLAIN:
        return _PLAIN[key]
    *modifiers, name = key.split("+")
    code = 1 + sum(_MODIFIERS.get(modifier, 0) for modifier in modifiers)
    if name in _CURSOR:
        if code > 1:
            return f"\x1b[1;{code}{_CURSOR[name]}".encode()
        return f"\x1b{'O' if application else '['}{_CURSOR[name]}".encode()
    if name in _NUMBERED:
        return f"\x1b[{_NUMBERED[name]}{f';{code}' if code > 1 else ''}~".encode()
    if name in _LETTERED:
        return f"\x1b[1;{code}{_LETTERED[name]}".encode() if code > 1 else f"\x1bO{_LETTERED[name]}".encode()
    if "ctrl" in modifiers and re.fullmatch("[a-z]", name):
        return (b"\x1b" if "alt" in modifiers else b"") + bytes((ord(name) - 0x60,))
    if "alt" in modifiers and len(name) == 1:
        return b"\x1b" + name.encode()
    if character and (character.isprintable() or len(character) == 1):
        return character.encode()
    return b""

"""Variables in a text as `docker compose` reads them, in its YAML and in env files alike.

The forms are those of the Compose specification, "Interpolation": `$NAME`, `${NAME}`, `${NAME:-text}`,
`${NAME-text}`, `${NAME:?message}`, `${NAME?message}`, `${NAME:+text}`, `${NAME+text}` and `$$`. `text` may hold
variables itself. Any other dollar stands for itself. devloop.toml has its own, stricter forms: see `interpolate`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_START = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<brace>\{))")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<sign>:?[-+?])(?P<rest>.*))?", re.DOTALL)


class SubstitutionError(Exception):
    """A text that can't be substituted. `what` is the whole sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@dataclass(frozen=True, slots=True)
class Reference:
    """A variable in a text. `sign` is one of "", ":-", "-", ":?", "?", ":+" and "+"; `rest` is what follows it."""

    name: str
    sign: str = ""
    rest: str = ""


def pieces(text: str) -> Iterator[str | Reference]:
    """The text in its order, as literal pieces and references. Raises `SubstitutionError` for what is neither."""
    position = 0
    while found := _START.search(text, position):
        yield text[position : found.start()]
        position = found.end()
        if found["dollar"]:
            yield "$"
        elif found["name"]:
            yield Reference(found["name"])
        else:
            end = closing(text, found.end() - 1)
            body = _BODY.fullmatch(text, found.end(), end) if end is not None else None
            if end is None or body is None:
                shown = text[found.start() : found.start() + 30]
                raise SubstitutionError(f'"{shown}" is not a variable; "$$" stands for one dollar')
            yield Reference(body["name"], body["sign"] or "", body["rest"] or "")
            position = end + 1
    yield text[position:]


def substitute(text: str, lookup: Callable[[str], str | None], depth: int = 0) -> str:
    """The text with its variables replaced; one that is not set becomes empty.

    Raises `SubstitutionError` for what is no variable, and for `${NAME:?message}` without a value.
    """
    if "$" not in text:
        return text
    if depth > 50:
        raise SubstitutionError("variables are nested more than 50 deep")
    done = []
    for piece in pieces(text):
        if isinstance(piece, str):
            done.append(piece)
            continue
        value = lookup(piece.name)
        given = value is not None and (value != "" or not piece.sign.startswith(":"))
        kind = piece.sign[-1:]
        if kind == "-" and not given:
            value = substitute(piece.rest, lookup, depth + 1)
        elif kind == "+":
            value = substitute(piece.rest, lookup, depth + 1) if given else value
        elif kind == "?" and not given:
            message = substitute(piece.rest, lookup, depth + 1)
            raise SubstitutionError(f"the variable {piece.name} must be set{f': {message}' if message else ''}")
        done.append(value or "")
    return "".join(done)


def closing(text: str, start: int) -> int | None:
    """The brace that closes the one at `start`; braces in between count, so a default may hold JSON."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position
    return None

"""Env files, in the one dialect that docs/configuration.md lists: that of `docker compose`.

The rules are those of compose-go's `dotenv` package (github.com/compose-spec/compose-go), which Compose reads its
.env and its `env_file` with. python-dotenv reads another language: it takes `'${A}'` for a variable and `$A` for
text, so that a quoted password loses its dollars. Where this module is stricter than compose-go, the table says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from devloop.config.problems import Findings, Spot
from devloop.config.substitute import SubstitutionError, substitute
from devloop.config.text import EncodingError, decode
from devloop.config.words import quoted
from devloop.paths import read_file

LONGEST = 128 * 1024
"""Bytes of NAME=value with the NUL behind it (execve(2), MAX_ARG_STRLEN). So lines that double each other end, too."""

LARGEST = 8 << 20
"""Bytes of an env file: an execve takes 2 MiB of variables, as a rule."""

_SPACES = " \t\v\f\r\u0085\u00a0"
_BLANK = re.compile(rf"(?:[{_SPACES}\n]|#[^\n]*)*")
_NAME = re.compile(rf"(?:export[{_SPACES}]+)?(?P<name>(?:[^\W]|[.\-\[\]])+)[{_SPACES}]*(?P<after>[=:]|(?=\n)|\Z)")
_GAP = re.compile(rf"[{_SPACES}]*")
_COMMENT = re.compile(rf"(?:^|[{_SPACES}])#.*")
_TAIL = re.compile(rf"[{_SPACES}]*(?:#[^\n]*)?(?=\n|\Z)")
_ESCAPE = re.compile(r'\\(?:[abcfnrtv$"\\]|0[0-3][0-7]{2})')
_ESCAPED = {"a": "\a", "b": "\b", "c": "\\c", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ESCAPED |= {"$": "$$", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line `NAME=value`. `value` is None for a name alone; in a `literal` one, `$` is a dollar."""

    name: str
    value: str | None
    literal: bool
    at: int
    """The position in the text. Its line is counted only for a finding: counting takes as long as reading to there."""


def read_env_file(file: Path, environ: Mapping[str, str], findings: Findings) -> dict[str, str]:
    """The variables that the file sets; a variable in a value is looked up in `environ`, then in the lines above.

    A name without `=` has `environ`'s value, and is left out if that has none. A line that can't be read is a
    finding. Raises OSError.
    """
    return read_env_text(read_file(file, LARGEST), file, environ, findings)


def read_env_text(content: bytes, file: Path, environ: Mapping[str, str], findings: Findings) -> dict[str, str]:
    """The same for what the file holds."""
    try:
        text = decode(content)
    except EncodingError as error:
        findings.add(Spot(file, error.line, error.column), error.what, error.hint)
        return {}
    values: dict[str, str] = {}
    text = text.replace("\r\n", "\n")

    def spot(position: int) -> Spot:
        line_start = text.rfind("\n", 0, position) + 1
        return Spot(file, text.count("\n", 0, position) + 1, position - line_start + 1)

    def known(name: str) -> str | None:
        return environ.get(name, values.get(name))

    for entry in _entries(text, spot, findings):
        value = environ.get(entry.name) if entry.value is None else entry.value
        if value is None:
            continue
        if entry.value is not None and not entry.literal:
            try:
                value = substitute(value, known)
            except SubstitutionError as error:
                hint = f"single quotes take a value as it is: {entry.name}='…'"
                findings.add(spot(entry.at), f"{entry.name}: {error.what}", hint)
                continue
        if "\0" in value:
            findings.add(spot(entry.at), f"{entry.name}: a NUL character can't be part of a variable")
            continue
        if len(os.fsencode(f"{entry.name}={value}")) >= LONGEST:
            findings.add(
                spot(entry.at), f"{entry.name}: more than {LONGEST // 1024} KiB, which no program can be given"
            )
            continue
        values[entry.name] = value
    return values


def _entries(text: str, spot: Callable[[int], Spot], findings: Findings) -> list[_Entry]:
    """The lines of the file; one that can't be read is a finding, and reading goes on below it."""

    def next_line(position: int) -> int:
        end = text.find("\n", position)
        return len(text) if end < 0 else end

    found: list[_Entry] = []
    position = 0
    while True:
        position = _span(_BLANK, text, position)
        if position == len(text):
            return found
        if (name := _NAME.match(text, position)) is None:
            _refuse_name(text[position : next_line(position)], spot(position), findings)
            position = next_line(position)
            continue
        if not name["after"]:
            found.append(_Entry(name["name"], None, False, name.start("name")))
            position = name.end()
            continue
        start = position = _span(_GAP, text, name.end())
        quote = text[start : start + 1]
        if quote in ("'", '"'):
            closed = _quoted(text, start)
            if closed is None:
                what = f"{name['name']}: the quote {quote} is not closed"
                findings.add(spot(start), what, "close it; a quoted value may have several lines")
                position = next_line(start)
                continue
            value, position = closed
            if (tail := _TAIL.match(text, position)) is None:
                what = f"{name['name']}: there is more behind the closing quote"
                findings.add(spot(position), what, f"put a \\ before a {quote} inside, or quote the whole value")
                position = next_line(position)
                continue
            position = tail.end()
            value = value if quote == "'" else _ESCAPE.sub(_unescaped, value)
        else:
            position = next_line(start)
            value = _COMMENT.sub("", text[start:position]).rstrip()
        found.append(_Entry(name["name"], value, quote == "'", start))


def _span(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position


def _refuse_name(line: str, spot: Spot, findings: Findings) -> None:
    name = line.partition("=")[0].strip()
    hint = "names are made of letters, digits, _ . - [ and ]"
    what = f"expected NAME=value, not {quoted(line.strip())}"
    if "=" in line and name:
        what = f"{quoted(name)} can't be the name of a variable"
    findings.add(spot, what, hint)


def _quoted(text: str, start: int) -> tuple[str, int] | None:
    """What is between the quote at `start` and the one that closes it, and the position behind that.

    A backslash keeps a quote of the same kind from closing, and is taken out there; elsewhere it stays.
    """
    quote = text[start]
    value: list[str] = []
    position = start + 1
    while position < len(text):
        char = text[position]
        if char == quote:
            return "".join(value), position + 1
        if char == "\\" and position + 1 < len(text):
            following = text[position + 1]
            value.append(following if following == quote else char + following)
            position += 2
            continue
        value.append(char)
        position += 1
    return None


def _unescaped(match: re.Match[str]) -> str:
    body = match.group()[1:]
    if body[0] == "0":
        return chr(int(body[1:], 8))
    return _ESCAPED[body]

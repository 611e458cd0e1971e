"""Standard output and error as this process has them: colours or none, and nothing on them that a terminal obeys."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO, cast

from devloop.escapes import screen, words


def wants_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether devloop's own words have colours there: https://no-color.org and https://force-color.org."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return environ["FORCE_COLOR"] not in ("0", "false")
    return stream.isatty() and environ.get("TERM") != "dumb"


def in_ci(environ: Mapping[str, str]) -> bool:
    """Whether nobody is there to press a key, terminal or not: CI is set, as the field has it."""
    return environ.get("CI", "").lower() not in ("", "0", "false")


def keeps_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the colours of services are kept there: as written, unless NO_COLOR or TERM=dumb asks for none."""
    plain = environ.get("NO_COLOR") or (environ.get("TERM") == "dumb" and stream.isatty())
    return not plain or wants_colour(stream, environ)


class _Guarded:
    """A stream that lets through what `clean` leaves. Text that its encoding does not have is escaped."""

    def __init__(self, stream: TextIO, clean: Callable[[str], str]) -> None:
        self._stream = stream
        self._clean = clean

    def write(self, text: str) -> int:
        """See io.TextIOBase."""
        text = self._clean(text)
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def unguarded(stream: TextIO) -> TextIO:
    """The stream itself, for what a terminal is to obey: devloop's own sequences, and a line end in raw mode."""
    return stream._stream if isinstance(stream, _Guarded) else stream


def styled(text: str) -> None:
    """Print text with colours, devloop's own or those of a log. Names in it have to be clean already (`escapes`)."""
    _Guarded(unguarded(sys.stdout), screen).write(text)


def data(text: str) -> None:
    """Print what a program is to read as it is; a terminal gets what it may see."""
    stream = unguarded(sys.stdout)
    _Guarded(stream, words if stream.isatty() else str).write(text)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Of whatever is printed meanwhile nothing passes that a terminal obeys, through a pipe neither: `list | less`.

    Exceptions are asked for: `styled` for colours, `data` for what a program reads.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _Guarded(before[0], words))
    sys.stderr = cast(TextIO, _Guarded(before[1], words))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

"""Standard input, output and error, whatever they were given: closed, full, gone, or with no letters beyond ASCII."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys

TYPE_CHECKING = False  # as typing has it, whose import takes as long as half of the parser
if TYPE_CHECKING:
    from typing import TextIO

_ERRORS = "devloop-any"


def prepare() -> None:
    """To be called before anything else is opened.

    A closed one (`>&-`) becomes /dev/null: the next file that is opened would have its number, and get what is printed.
    A name that is not UTF-8 is printed as the bytes that it has; what the encoding can't say, as "?".
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it is the process's
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    codecs.register_error(_ERRORS, _any)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def _any(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    # Surrogates that stand for single bytes (PEP 383).
    return bytes(ord(each) - 0xDC00 if 0xDC80 <= ord(each) <= 0xDCFF else 0x3F for each in wrong), error.end


def tell(text: str) -> None:
    """A line on standard error, for who reads it; that nobody can is no reason to stop."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """What is written to the stream from here on goes nowhere, and so does what it still holds."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)

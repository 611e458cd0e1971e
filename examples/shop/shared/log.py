"""The log: plain lines on stdout, each one flushed, with the colours of a status unless NO_COLOR is set."""

from __future__ import annotations

import os

COLOURS = "NO_COLOR" not in os.environ
CODES = {2: 32, 3: 36, 4: 33, 5: 31}


def say(text: str) -> None:
    """Flushed at once: a pipe would otherwise keep the last 8 KiB back from whoever follows the log."""
    print(text, flush=True)


def status(code: int) -> str:
    """An HTTP status, green if it is fine and red if it is our fault."""
    return f"\x1b[{CODES.get(code // 100, 0)}m{code}\x1b[0m" if COLOURS else str(code)

"""argparse with the habits that people bring: `-f` and `--json` on either side of the command, no option guessed from
its beginning, and mistakes answered with the nearest names."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence

from devloop.errors import UsageError

TYPE_CHECKING = False  # as typing has it, whose import takes as long as half of the parser
if TYPE_CHECKING:
    from typing import NoReturn

    from _typeshed import SupportsWrite

_CHOICE = re.compile(r"argument (.+?): invalid choice: (?:'(.*?)'|\"(.*?)\") \(choose from")
_UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
UNLISTED = ("engine", "names")
"""Commands that devloop itself and shells use."""
_AMONG = 3
"""Names that a hint offers."""


class Parser(argparse.ArgumentParser):
    """Also the class of what `add_subparsers` makes."""

    def __init__(self, *, prog: str | None = None, description: str | None = None, epilog: str | None = None) -> None:
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False)

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Unlike argparse's own, this does not pass over a disk that is full."""
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        """Say it on stderr and exit with 2. The nearest of the names that were possible stand first."""
        from devloop import streams

        streams.tell(f"{self.prog}: {self._in_words(message)}")
        self.exit(UsageError.exit_code)

    def _in_words(self, message: str) -> UsageError:
        takes = f"`{self.prog} --help` tells what it takes"
        if found := _CHOICE.match(message):
            given = found[2] if found[2] is not None else found[3]
            for action in self._actions:
                names = "/".join(action.option_strings) or str(action.metavar or action.dest)
                if names == found[1] and action.choices is not None:
                    among = [each for each in map(str, action.choices) if each not in UNLISTED]
                    what = names.lower() if isinstance(action, argparse._SubParsersAction) else names
                    return UsageError(f"there is no {what} {given!r}", hint=near(given, among, takes))
        if (found := _UNKNOWN.match(message)) and found[1].startswith("-"):
            given = found[1].split()[0].partition("=")[0]
            options = [each for each in self._option_string_actions if each.startswith("--")]
            return UsageError(f"there is no option {given}", hint=near(given, options, takes))
        return UsageError(message, hint=takes)

    def meant(self, found: argparse.Namespace) -> Parser:
        """The parser of the command that was parsed."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = action.choices.get(getattr(found, action.dest, None) or "")
                if isinstance(chosen, Parser):
                    return chosen.meant(found)
        return self


def parse(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace. What is left over is a mistake of the command that was meant, and told as such.

    Raises SystemExit after a mistake, --help and --version.
    """
    found, rest = parser.parse_known_args(words)
    meant = parser.meant(found)
    if rest:
        # An option that is unknown is what went wrong; what stands behind it may be its value.
        rest.sort(key=lambda word: not word.startswith("-"))
        meant.error(f"unrecognized arguments: {' '.join(rest)}")
    if getattr(found, "json", False) and "--json" not in meant._option_string_actions:
        meant.error("--json is nothing that this command has")
    return found


def near(given: str, names: Sequence[str], more: str) -> str:
    """`did you mean …?`, or what there is, the nearest first; and where there is more to read."""
    from difflib import get_close_matches

    from devloop.config.words import listing, suggestion

    close = get_close_matches(given, names, n=_AMONG, cutoff=0.65)
    if close:
        return f"did you mean {listing([f'`{each}`' for each in close])}? {more}"
    text = suggestion(given, names, kind="there are")
    return f"{text}{'' if text.endswith('?') else ';'} {more}"


def seconds(text: str) -> float:
    """A time in seconds, 0 or more. Raises ArgumentTypeError."""
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def count(text: str) -> int:
    """A number of lines: 0 or more. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text[:9])

"""`devloop help` and `devloop version`."""

from __future__ import annotations

import argparse

from devloop import __version__


def show(args: argparse.Namespace) -> int:
    """`devloop help [COMMAND …]`: what `devloop COMMAND … --help` shows."""
    if not args.words:
        args.parser.print_help()
        return 0
    # The command's own parser answers, and ends the program as it does for --help; a mistake in a name, too.
    try:
        args.parser.parse_known_args([*args.words, "--help"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def version(_: argparse.Namespace) -> int:
    """`devloop version`."""
    print(f"devloop {__version__}")
    return 0

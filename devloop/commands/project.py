"""Commands about the project file: check, schema, init, exec, completion."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from devloop.commands.common import print_json, project_file
from devloop.config.find import FILE_NAME
from devloop.errors import UsageError


def check(args: argparse.Namespace) -> int:
    """`devloop check`: every problem, or a summary. Problems are raised, and so end with 2."""
    from devloop.config.load import load

    file = project_file(args)
    project = load(file, os.environ)
    count = len(project.services)
    others = len(project.files) - 1
    more = f" and {others} more file{'s' if others > 1 else ''}" if others else ""
    print(f"{file}{more}: {count} service{'' if count == 1 else 's'}, no problems")
    return 0


def schema(_: argparse.Namespace) -> int:
    """`devloop schema`."""
    from devloop.config.json_schema import json_schema

    print_json(json_schema())
    return 0


def init(args: argparse.Namespace) -> int:
    """`devloop init`."""
    from devloop.scaffold import generate

    folder = Path.cwd()
    text = generate(folder)
    if args.stdout:
        sys.stdout.write(text)
        return 0
    target = folder / FILE_NAME
    if target.exists() and not args.force:
        raise UsageError("there is one already", where=str(target), hint="`devloop init --force` replaces it")
    target.write_text(text)
    print(f"{target} written: look through it, then `devloop check` and `devloop up`")
    return 0

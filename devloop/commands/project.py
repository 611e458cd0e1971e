"""Commands about the project file: check, schema, init, exec, completion."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from devloop.commands.common import print_json, project_file
from devloop.config.find import FILE_NAME
from devloop.errors import DevloopError, UsageError


def check(args: argparse.Namespace) -> int:
    """`devloop check`: every problem, or a summary. Problems are raised, and so end with 2."""
    from devloop.config.load import load
    from devloop.config.shell import complaint

    file = project_file(args)
    project = load(file, os.environ)
    count = len(project.services)
    others = len(project.files) - 1
    more = f" and {others} more file{'s' if others > 1 else ''}" if others else ""
    print(f"{file}{more}: {count} service{'' if count == 1 else 's'}, no problems")
    for service in project.services.values():
        for key, command in (("command", service.command), ("build", service.build)):
            if command is not None and (why := complaint(command.argv, command.text)):
                print(f"  services.{service.name}.{key}: {why}")
    return 0


def schema(_: argparse.Namespace) -> int:
    """`devloop schema`."""
    from devloop.config.json_schema import json_schema

    print_json(json_schema())
    return 0


def init(args: argparse.Namespace) -> int:
    """`devloop init`. What was not taken over is said on stderr, and in the file's comments."""
    from devloop.scaffold import make

    target = Path.cwd() / (args.file or FILE_NAME)
    if args.file and target.is_dir():
        target /= FILE_NAME
    folder = target.parent
    if not folder.is_dir():
        raise UsageError("there is no such folder", where=str(folder), hint="make it, or name another file with -f")
    if not args.stdout:
        _may_write(target, force=args.force)
    made = make(folder)
    if args.stdout:
        if sys.stdout.isatty():
            print(made.text, end="")  # names in it are the folder's
        else:
            sys.stdout.buffer.write(made.text.encode())  # TOML is UTF-8, whatever the language here is
        sys.stdout.flush()
    else:
        _write(target, made.text, force=args.force)
    if made.left_out:
        print("Not taken over, or not as it should be (comments in the file say it too):", file=sys.stderr)
        for each in made.left_out:
            print(f"  {each}", file=sys.stderr)
    if not args.stdout:
        count = f"{made.services} service{'' if made.services == 1 else 's'}"
        print(f"{target} written, with {count}: look through it, then `devloop check` and `devloop up`")
    if made.off:
        print(
            f"off, as there is only an image of it: {', '.join(made.off)}. "
            'mode = "local" runs it with Docker, mode = "remote" uses the cluster\'s',
            file=sys.stderr,
        )
    return 0


def _may_write(target: Path, *, force: bool) -> None:
    """Raise what stands against writing the file, before anything else is looked at."""
    if target.is_symlink():
        raise UsageError(
            "this is a link, and `devloop init` writes through none",
            where=str(target),
            hint="remove the link, or write the file that it leads to with `devloop init --stdout`",
        )
    if target.is_dir():
        raise UsageError("this is a folder", where=str(target), hint="move it out of the way")
    if target.exists() and not force:
        raise UsageError("there is one already", where=str(target), hint="`devloop init --force` replaces it")


def _write(target: Path, text: str, *, force: bool) -> None:
    """Write the whole file or nothing, following no link."""
    # A file that is there is replaced by a whole one; a new one is made where it stands, so that nothing is replaced.
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new") if force else target
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(text.encode())
            if force:
                fresh.replace(target)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise UsageError("there is one already", where=str(target), hint="`devloop init --force` replaces it") from None
    except OSError as error:
        raise DevloopError(
            f"can't be written: {error.strerror}",
            where=str(target),
            hint="`devloop init --stdout` prints it instead",
        ) from None

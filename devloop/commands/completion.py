"""`devloop completion`, and `devloop names`, which its scripts ask for what SERVICE may be.

The names come with no check and no interpolation, from the standard library alone: a shell waits for them.
"""

from __future__ import annotations

import argparse
import glob
import tomllib
from pathlib import Path
from typing import Any

from devloop.commands.common import project_file
from devloop.errors import DevloopError


def completion(args: argparse.Namespace) -> int:
    """`devloop completion`."""
    import shtab

    _complete_services(args.parser, shtab.cmd("devloop names 2>/dev/null"))
    try:
        print(shtab.complete(args.parser, shell=args.shell))
    except NotImplementedError as error:
        raise DevloopError(f"no completion for {args.shell}: {error}") from None
    return 0


def _complete_services(parser: argparse.ArgumentParser, how: object) -> None:
    """Where a service is asked for, its name is completed."""
    for action in parser._actions:
        if action.metavar == "SERVICE":
            action.complete = how  # type: ignore[attr-defined]  # shtab's way
        elif isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _complete_services(each, how)


def names(args: argparse.Namespace) -> int:
    """Services and groups, a line each. A file that can't be read has none: a shell is no place for errors."""
    try:
        file = project_file(args)
    except DevloopError:
        return 0
    for name in sorted(found(file)):
        print(name)
    return 0


def found(file: Path) -> set[str]:
    """The names in a project file and in what it includes."""
    first = _read(file)
    include = first.get("include") or []
    patterns = [include] if isinstance(include, str) else include if isinstance(include, list) else []
    names: set[str] = set()
    others = [
        file.parent / each
        for pattern in patterns
        if isinstance(pattern, str)
        # Unlike Path.glob it takes "../shared/*.toml".
        for each in glob.glob(pattern, root_dir=file.parent, recursive=True)  # noqa: PTH207
    ]
    for data in (first, *map(_read, others)):
        services = data.get("services")
        for name, table in services.items() if isinstance(services, dict) else ():
            names.add(name)
            groups = table.get("groups") if isinstance(table, dict) else None
            names |= {groups} if isinstance(groups, str) else set(groups) if isinstance(groups, list) else set()
    return names


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, ValueError):
        return {}

"""`devloop completion`, and `devloop names`, which its scripts ask for what SERVICE may be.

The names come with no check of the file and no interpolation, from the standard library alone: a shell waits for them.
A TAB in a repository is no consent to anything, so nothing of what a project file says reaches a shell but names that
keep the rule for names, and no script hands one to a place where a shell evaluates it.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import signal
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devloop.commands.common import project_file
from devloop.config.find import other_owner
from devloop.config.label import LABEL
from devloop.errors import DevloopError
from devloop.paths import read_file

SECONDS = 2.0
"""After these a TAB has no names: an `include` can name a whole disk."""
LARGEST = 8 << 20
"""Bytes of a file, as `devloop.config.read` has it."""

_BASH = """
_devloop_services() {
  local name
  while IFS= read -r name; do
    # No compgen -W: it expands what it is given.
    [[ $name =~ ^[a-z0-9]([a-z0-9-]*[a-z0-9])?$ && $name == "$1"* ]] && printf '%s\\n' "$name"
  done < <(devloop names 2>/dev/null)
}"""
_ZSH = """
_devloop_services() {
  # No list in parentheses in the specification: _arguments evaluates that.
  local -a names
  names=(${(f)"$(devloop names 2>/dev/null)"})
  names=(${names:#*[^a-z0-9-]*})
  names=(${names:#-*})
  compadd -a names
}"""
_FISH = """
function _devloop_services
  devloop names 2>/dev/null | string match -r '^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$'
end"""
_SERVICES = {
    "bash": "_devloop_services",
    "zsh": "_devloop_services",
    "fish": "(_devloop_services)",
    # tcsh has no functions, and expands what a command prints once more.
    "tcsh": '`devloop names | grep -x "[a-z0-9][a-z0-9-]*"`',
    "preamble": {"bash": _BASH, "zsh": _ZSH, "fish": _FISH},
}
"""What completes a service's name, for each shell, as shtab takes it."""


def completion(args: argparse.Namespace) -> int:
    """`devloop completion`."""
    import shtab

    _complete_services(args.parser, _SERVICES)
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
        with _in_time():
            for name in sorted(found(project_file(args))):
                print(name)
    except (DevloopError, _TooLongError, RecursionError):
        pass
    return 0


class _TooLongError(Exception):
    """No OSError as TimeoutError is, which glob passes over."""


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Raises _TooLongError in whatever takes longer than SECONDS."""

    def over(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def found(file: Path) -> set[str]:
    """The names in a project file and in what it includes, those alone that may be names."""
    names: set[str] = set()
    for each in files(file):
        services = _read(each, file).get("services")
        for name, table in services.items() if isinstance(services, dict) else ():
            names.add(name)
            groups = table.get("groups") if isinstance(table, dict) else None
            among = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
            names |= {group for group in among if isinstance(group, str)}
    return {name for name in names if LABEL.fullmatch(name)}


def files(file: Path) -> Iterator[Path]:
    """A project file, whosever it is, and what it includes."""
    yield file
    include = _read(file, None).get("include") or []
    patterns = [include] if isinstance(include, str) else include if isinstance(include, list) else []
    for pattern in patterns:
        if isinstance(pattern, str):
            # Unlike Path.glob it takes "../shared/*.toml".
            for each in glob.iglob(pattern, root_dir=file.parent, recursive=True):  # noqa: PTH207
                yield file.parent / each


def _read(file: Path, project_file: Path | None) -> dict[str, Any]:
    """A file of the project; nothing of another user's that may not be used for it. None: of whomever it is."""
    try:
        found = file.stat()  # a device or a named pipe has no end
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            return {}
        if project_file is not None and other_owner(file, project_file) is not None:
            return {}
        return tomllib.loads(read_file(file, LARGEST).decode())
    except (OSError, ValueError):
        return {}

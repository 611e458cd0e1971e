"""What commands share: the project that is meant, its engine, and tables."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devloop import presence
from devloop.config.find import FILE_NAME, ForeignError, current_folder, find, folders, real, the_file
from devloop.errors import ConfigError, DevloopError, EngineError, UnansweredError, UsageError
from devloop.paths import kind
from devloop.state import StateFolder
from devloop.terminal import wants_colour

if TYPE_CHECKING:
    from devloop.config.model import Service
    from devloop.protocol import Snapshot, Variable


_MENDED = 3.0
"""Seconds in which an engine whose control socket was removed has made a new one (`devloop.engine.guard`)."""


def project_file(args: argparse.Namespace, *, anybodys: bool = False) -> Path:
    """The project file that is meant, links followed; it is not read.

    Raises ConfigError if there is none, UsageError if it was named with -f, ForeignError if it is another user's.
    """
    if args.file is None:
        return find(current_folder(), anybodys=anybodys)
    path = _named(args.file)
    try:
        return the_file(path, anybodys=anybodys)
    except ForeignError:
        raise
    except ConfigError as problem:
        raise UsageError(problem.what, where=problem.where, hint=problem.hint) from None


def _named(file: str) -> Path:
    """The project file's path that -f means, which may not be there."""
    path = Path(file) if Path(file).is_absolute() else current_folder() / file
    return path / FILE_NAME if kind(path) == "a folder" else path


def state_folder(args: argparse.Namespace) -> StateFolder:
    """The state folder of the project that is meant: the one that its engine has, if one runs.

    The engine's project file may be gone, by a switch of branches for instance. Raises what `project_file` raises.
    """
    try:
        file = project_file(args)
    except (ConfigError, UsageError):
        found = _without_file(args)
        if found is None:
            raise
        return found
    if args.file is None:
        nearer = _without_file(args, below=file.parent)
        if nearer is not None:
            return nearer
    state = StateFolder(file.parent).of_engine()
    if args.file is not None:
        check_file(state, file)
    return state


def check_file(state: StateFolder, file: Path) -> None:
    """Raises EngineError if the engine that runs in the project's folder is of another project file there."""
    running = state.engine()
    if running is None or running.file is None or running.file == file or not running.file.exists():
        return
    raise EngineError(
        f"the engine that runs in this folder is of {running.file.name}",
        where=str(file),
        hint=f"end it with `devloop down -f {running.file.name}`: a folder has one engine",
    )


def _without_file(args: argparse.Namespace, below: Path | None = None) -> StateFolder | None:
    """The state folder of an engine whose project file is not there any more; `below`: in a folder below this one."""
    if args.file is not None:
        candidates: Iterable[Path] = [real(_named(args.file)).parent]
    else:
        here = folders(current_folder())
        # A devloop.toml that is a link stands for the file that it leads to, there or not.
        candidates = (
            real(folder / FILE_NAME).parent if (folder / FILE_NAME).is_symlink() else folder for folder in here
        )
    for folder in candidates:
        if folder == below:
            return None
        state = StateFolder(folder, folder / ".devloop")
        if state.engine() is not None:
            return StateFolder(folder).of_engine()
        if presence.engine_of(folder) is not None:
            return StateFolder(folder).of_engine()
    return None


def engine_socket(args: argparse.Namespace) -> Path:
    """The control socket of the engine of the project that is meant. Raises EngineError if none runs."""
    return socket_of(state_folder(args))


def snapshot(args: argparse.Namespace) -> Snapshot:
    """What the project's engine says of itself now. Raises EngineError if none runs or answers."""
    from devloop.control import client
    from devloop.protocol import Snapshot

    return Snapshot.from_json(client.call(engine_socket(args), "status"))


def socket_of(state: StateFolder) -> Path:
    """The control socket of the engine that has this state folder.

    Waits for one that was just removed: the engine makes it again. Raises EngineError if none runs, or if it does not.
    """
    running = state.engine()
    if running is None:
        raise EngineError("no engine runs for this project", where=str(state.root), hint="start it with `devloop up`")
    until = time.monotonic() + _MENDED
    if obstacle := state.obstacle:
        raise UnansweredError(state.path, running.pid, stopped=presence.is_stopped(running.pid), obstacle=obstacle)
    while not state.socket.is_socket():
        if time.monotonic() > until:
            raise UnansweredError(state.path, running.pid, stopped=presence.is_stopped(running.pid))
        time.sleep(0.05)
    return state.socket


def print_json(data: Any) -> None:
    """Indented for a person at a terminal, one line for a program."""
    text = json.dumps(data, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False)
    # JSON escapes the control characters that ASCII has, but neither those behind them nor what turns text around.
    unsafe = "[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    print(re.sub(unsafe, lambda found: f"\\u{ord(found[0]):04x}", text))


_LONGEST_AGE = 50 * 365 * 86_400.0
"""Seconds; all that is older than this is older than any time that devloop has noted."""


def age(text: str) -> int:
    """Nanoseconds of "30m", "12h" or "7d". Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise UsageError(f"{text!r} is no age", hint="a number and one of s, m, h, d, w: 30m, 12h, 7d")
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]
    return int(min(float(match[1]) * seconds, _LONGEST_AGE) * 1_000_000_000)


def check_names(names: Iterable[str], known: Collection[str]) -> None:
    """Raise UsageError for the first that is no service."""
    for name in names:
        if name not in known:
            from devloop.config.words import suggestion

            hint = suggestion(name, sorted(known), kind="services")
            raise UsageError(f"there is no service {name!r}", hint=hint)


def write(file: Path, text: str) -> None:
    """Write a file that the user has named. Names that are not UTF-8 stay what they are. Raises DevloopError."""
    try:
        with file.open("w", encoding="utf-8", errors="surrogateescape") as target:
            target.write(text)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.ENOENT:
            reason = f"there is no folder {file.parent}"
        raise DevloopError(f"can't be written: {reason}", where=str(file), hint="name another file or folder") from None


def colour() -> bool:
    """Whether to use colour on stdout: NO_COLOR and FORCE_COLOR say so, else whether it is a terminal."""
    return wants_colour(sys.stdout)


def service_world(args: argparse.Namespace) -> tuple[Service, list[Variable]]:
    """The service that is meant and its environment, from the project file; no engine is asked.

    Raises ConfigError for a broken file, UsageError for a name that is no service's.
    """
    from devloop.engine.engine import load_project
    from devloop.local import environment

    project = load_project(project_file(args), os.environ, [args.service])
    service = project.services.get(args.service)
    if service is None:
        raise UsageError(f"{args.service} is a group", hint="name one service")
    return service, environment.resolve(service, os.environ, environment.own(project.name, service.name))

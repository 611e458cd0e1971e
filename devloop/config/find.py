"""Where the project file is. Apart from `load`, which takes pydantic: `devloop status` has to be quick.

A devloop.toml that is a link stands for the file that it leads to: the project's folder is that file's.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from devloop.errors import ConfigError
from devloop.paths import kind
from devloop.places import stranger, user_name

FILE_NAME = "devloop.toml"


class ForeignError(ConfigError):
    """A project file that belongs to somebody else, and that this user has not said to trust."""


def find(start: Path, *, anybodys: bool = False) -> Path:
    """The devloop.toml of this folder or of the nearest one above it, links followed.

    Raises ConfigError if there is none, or if it is something else than a file; ForeignError as `the_file` does.
    """
    for folder in folders(start):
        # A folder of that name is a project of that name.
        if (folder / FILE_NAME).is_symlink() or kind(folder / FILE_NAME) not in ("", "a folder"):
            return the_file(folder / FILE_NAME, anybodys=anybodys)
    raise ConfigError(
        f"there is no {FILE_NAME} in this folder or above it",
        where=str(start),
        hint="write one with `devloop init`, or name it with -f",
    )


def folders(start: Path) -> Iterator[Path]:
    """A folder and those above it, the nearest first."""
    folder = start.absolute()
    yield folder
    yield from folder.parents


def current_folder() -> Path:
    """The current folder. Raises ConfigError if it was removed."""
    try:
        return Path.cwd()
    except OSError:
        raise ConfigError(
            "the current folder is not there any more",
            where=os.environ.get("PWD"),
            hint="go to another one with cd; if the folder was made anew: cd .. and back",
        ) from None


def the_file(path: Path, *, anybodys: bool = False) -> Path:
    """The project file that a path leads to, links followed.

    Raises ConfigError if that is no file, and ForeignError if it is somebody else's, unless it may be `anybodys`: who
    may write to /tmp would otherwise have a project for everybody who works in a folder below it (as git's
    `safe.directory`, CVE-2022-24765).
    """
    what = kind(path)
    if what == "a file":
        file = path.resolve()
        if not anybodys:
            check_owner(file)
        return file
    if not what and path.is_symlink():
        target = path.readlink()
        raise ConfigError(f"this is a link to {target}, which is not there", where=str(path), hint="mend the link")
    hint = f"name a {FILE_NAME} with -f, or write one with `devloop init`"
    raise ConfigError(
        f"this is {what}, and no project file" if what else "no such project file", where=str(path), hint=hint
    )


def owner(file: Path) -> int | None:
    """The other user that a project file or its folder belongs to; None if both are this user's or root's."""
    found = stranger(file)
    return stranger(file.parent) if found is None else found


def other_owner(path: Path, project_file: Path) -> int | None:
    """The user that a file of a project belongs to, if that is another one, of whom `devloop trust` was not said."""
    return _unless_agreed(stranger(path), project_file)


def _unless_agreed(uid: int | None, project_file: Path) -> int | None:
    if uid is None:
        return None
    from devloop import trust  # late: most projects are the user's own

    return None if uid in trust.agreed(project_file).owners else uid


def check_owner(file: Path) -> None:
    """Raises ForeignError if a project file belongs to another user, and `devloop trust` was not said of it."""
    uid = _unless_agreed(owner(file), file)
    if uid is None:
        return
    raise ForeignError(
        f"this project belongs to {user_name(uid)}, who could run commands as you",
        where=str(file),
        hint=f"look through it, then allow it with `{shlex.join(['devloop', 'trust', '-f', str(file)])}`",
    )


def real(path: Path) -> Path:
    """The path with its links followed as far as they lead, in a circle or nowhere too."""
    return Path(os.path.realpath(path))

"""Where the project file is. Apart from `load`, which takes pydantic: `devloop status` has to be quick.

A devloop.toml that is a link stands for the file that it leads to: the project's folder is that file's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from devloop.errors import ConfigError
from devloop.paths import kind

FILE_NAME = "devloop.toml"


def find(start: Path) -> Path:
    """The devloop.toml of this folder or of the nearest one above it, links followed.

    Raises ConfigError if there is none, or if it is something else than a file.
    """
    for folder in folders(start):
        # A folder of that name is a project of that name.
        if (folder / FILE_NAME).is_symlink() or kind(folder / FILE_NAME) not in ("", "a folder"):
            return the_file(folder / FILE_NAME)
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


def the_file(path: Path) -> Path:
    """The project file that a path leads to, links followed. Raises ConfigError if that is no file."""
    what = kind(path)
    if what == "a file":
        return path.resolve()
    if not what and path.is_symlink():
        target = path.readlink()
        raise ConfigError(f"this is a link to {target}, which is not there", where=str(path), hint="mend the link")
    hint = f"name a {FILE_NAME} with -f, or write one with `devloop init`"
    raise ConfigError(
        f"this is {what}, and no project file" if what else "no such project file", where=str(path), hint=hint
    )


def real(path: Path) -> Path:
    """The path with its links followed as far as they lead, in a circle or nowhere too."""
    return Path(os.path.realpath(path))

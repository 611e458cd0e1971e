"""Where the project file is. Apart from `load`, which takes pydantic: `devloop status` has to be quick."""

from __future__ import annotations

from pathlib import Path

from devloop.errors import ConfigError

FILE_NAME = "devloop.toml"


def find(start: Path) -> Path:
    """The devloop.toml of this folder or of the nearest one above it. Raises ConfigError if there is none."""
    folder = start.absolute()
    for candidate in (folder, *folder.parents):
        if (candidate / FILE_NAME).is_file():
            return candidate / FILE_NAME
    raise ConfigError(
        f"there is no {FILE_NAME} in this folder or above it",
        where=str(start),
        hint="write one with `devloop init`, or name it with -f",
    )

"""From a Procfile: `name: command` lines, as foreman, overmind, honcho and Heroku read them."""

from __future__ import annotations

import re
from pathlib import Path

from devloop.errors import ConfigError
from devloop.scaffold.draft import Draft, Value, literal

_LINE = re.compile(r"^([A-Za-z0-9_.-]+)\s*:\s*(.+)$")
_PORT = re.compile(r"\$\{?PORT\b")
FIRST_PORT = 5000
"""Foreman's: the first process type gets 5000 as its PORT, the next 5100, and so on."""


def read(file: Path) -> str:
    """A text file. Raises ConfigError if that is not possible."""
    try:
        return file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", where=str(file)) from None


def from_procfile(file: Path) -> list[Draft]:
    """A service for each process type."""
    drafts: list[Draft] = []
    for line in read(file).splitlines():
        if (match := _LINE.match(line.strip())) is None:  # empty lines and comments; others as foreman: ignored
            continue
        name, command = match.groups()
        draft = Draft(name, {"command": literal(command.strip())})
        if name == "release":
            draft.settings |= {"task": True, "mode": "off"}
            draft.notes.append("Heroku's release phase: runs once. By hand: devloop toggle release local")
        elif name == "web" or _PORT.search(command):
            # Process types are counted as foreman counts them, so that the ports are those people know.
            port: Value = FIRST_PORT + 100 * len(drafts)
            draft.settings |= {"env": {"PORT": str(port)}, "ports": {"http": port}}
        if (file.parent / ".env").is_file():
            draft.settings["env_file"] = ".env?"
        drafts.append(draft)
    return drafts

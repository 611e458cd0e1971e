"""A folder with a devloop.toml, and texts that mark where their problems are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from devloop.config.load import load
from devloop.config.model import Project, Service
from devloop.config.problems import ConfigProblems

MARK = "§"
"""Stands before each place of a text where a problem is expected."""


def unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and their lines and columns."""
    spots, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        *parts, last = line.split(MARK)
        column = 1
        for part in parts:
            column += len(part)
            spots.append((number, column))
        lines.append("".join([*parts, last]))
    return "\n".join(lines), spots


class Folder:
    """A folder with a devloop.toml."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ: dict[str, str] = {"HOME": str(root / "home")}

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def load(self, text: str, **files: str) -> Project:
        self.write({"devloop.toml": text, **files})
        return load(self.root / "devloop.toml", self.environ)

    def service(self, keys: str = "", *, before: str = "", command: str = 'command = "true"') -> Service:
        """The service x with these keys, loaded."""
        return self.load(f"{before}\n[services.x]\n{command}\n{keys}\n").services["x"]

    def refuse(self, text: str, files: Mapping[str, str] | None = None) -> list[str]:
        """The problems as `message | hint`; they must stand where the text's marks are, all of them."""
        plain, spots = unmarked(text)
        self.write(files or {})
        with pytest.raises(ConfigProblems) as caught:
            self.load(plain)
        problems = caught.value.problems
        messages = [f"{p.message} | {p.hint}" for p in problems]
        main = [(p.line, p.column) for p in problems if p.file.name == "devloop.toml"]
        assert main == spots, "\n".join(map(str, problems))
        return messages

    def refuse_service(self, keys: str, before: str = "") -> str:
        """The one problem with the service x, that has a command and these keys."""
        (message,) = self.refuse(f'{before}\n[services.x]\ncommand = "true"\n{keys}\n')
        return message

"""Problems of a configuration: collected by place, and put at a line and column when they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devloop.config.words import Path_
from devloop.errors import ConfigError
from devloop.paths import LARGE, read_file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. Lines and columns count from 1; columns count characters."""

    file: Path
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{shown(self.file)}:{self.line}:{self.column}: {self.message}"
        return f"{text}\n  {self.hint}" if self.hint else text


class ConfigProblems(ConfigError):  # noqa: N818 - it is several
    """Every problem of a project's files at once, project file first, then by line and column.

    `files` are all that were looked at, missing ones too: a change of one of them may be the mend.
    """

    def __init__(
        self, problems: tuple[Problem, ...], files: tuple[Path, ...] = (), foreign: Mapping[Path, int] | None = None
    ) -> None:
        """`foreign` are env files of other users, with their numbers: `devloop trust` allows them."""
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{problems[0].file.name} has {count}", where=shown(problems[0].file))
        self.problems = problems
        self.files = files
        self.foreign = foreign or {}

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def shown(file: Path) -> str:
    """The file as a terminal or an editor can open it from here: relative if it is below this folder."""
    try:
        return str(file.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(file)


@dataclass(frozen=True, slots=True)
class Place:
    """A key or a value of a file, by its path. `needle` narrows it to that text inside the value."""

    file: Path
    path: Path_ = ()
    on: Literal["key", "value"] = "value"
    needle: str = ""

    def at(self, *path: str | int) -> Place:
        """The value below this one."""
        return Place(self.file, self.path + path)

    def key(self, *path: str | int) -> Place:
        """The key of the value below this one."""
        return Place(self.file, self.path + path, "key")


@dataclass(frozen=True, slots=True)
class Spot:
    """A place that is already known by line and column."""

    file: Path
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class _Finding:
    place: Place | Spot
    message: str
    hint: str
    other: Place | None


class Findings:
    """What was found wrong so far. Nothing is looked up in a file before `problems` is called."""

    def __init__(self) -> None:
        self._found: dict[_Finding, None] = {}
        self._silent: set[tuple[Path, Path_]] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, place: Place | Spot, message: str, hint: str | None = None, *, other: Place | None = None) -> None:
        """Note a problem. `{other}` in the message becomes the file:line:column of `other`.

        The same problem at the same place counts once: a value of `[defaults]` is looked at for each
        service. A place that `silence` has covered adds nothing.
        """
        if isinstance(place, Place) and self._is_silent(place):
            return
        self._found[_Finding(place, message, hint or "", other)] = None

    def silence(self, place: Place) -> None:
        """Let later findings at or below this place pass: its value is not what the user would have."""
        self._silent.add((place.file, place.path))

    def _is_silent(self, place: Place) -> bool:
        return any((place.file, place.path[:n]) in self._silent for n in range(len(place.path) + 1))

    def problems(self, texts: Mapping[Path, str]) -> tuple[Problem, ...]:
        """All findings with their positions. `texts`: what each file held, the project file first."""
        from devloop.config.locate import Positions  # tree-sitter: for a file with problems only

        positions: dict[Path, Positions] = {}

        def spot(place: Place | Spot) -> Spot:
            if isinstance(place, Spot):
                return place
            if place.file not in positions:
                positions[place.file] = Positions(texts.get(place.file, ""))
            line, column = positions[place.file].find(place.path, place.on, place.needle)
            return Spot(place.file, line, column)

        found = []
        for finding in self._found:
            at, message = spot(finding.place), finding.message
            if finding.other is not None:
                other = spot(finding.other)
                message = message.replace("{other}", f"{shown(other.file)}:{other.line}:{other.column}")
            found.append(Problem(at.file, at.line, at.column, message, finding.hint))
        rank = {file: index for index, file in enumerate(texts)}
        found.sort(key=lambda p: (rank.get(p.file, len(rank)), str(p.file), p.line, p.column, p.message))
        return tuple(found)


def place_of(files: Iterable[Path], path: Path_) -> str:
    """FILE:LINE:COLUMN of a value in the first of these TOML files that has it; empty if none has. For what is found
    out about a value long after its file was read."""
    import tomllib

    from devloop.config.locate import Positions

    for file in files:
        try:
            text = read_file(file, LARGE).decode()
            table: object = tomllib.loads(text)
        except (OSError, ValueError):
            continue
        for part in path:
            table = table.get(str(part)) if isinstance(table, dict) else None
        if table is not None:
            line, column = Positions(text).find(path)
            return f"{shown(file)}:{line}:{column}"
    return ""

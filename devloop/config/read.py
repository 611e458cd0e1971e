"""Reads devloop.toml and the files that it includes: text, TOML, interpolation."""

from __future__ import annotations

import glob
import re
import tomllib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devloop.config.envfile import read_env_file
from devloop.config.explain import check_top_level, shaped
from devloop.config.find import other_owner
from devloop.config.interpolate import interpolated
from devloop.config.problems import Findings, Place, Spot
from devloop.config.schema import Head
from devloop.config.text import SAVE_AS_UTF8, EncodingError, decode
from devloop.config.words import quoted
from devloop.paths import read_file
from devloop.places import user_name

LARGEST = 8 << 20
"""Bytes of a project file; a thousand services have a tenth of it."""
_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its TOML after interpolation. Only the first of a project may have more than services."""

    file: Path
    text: str
    data: Mapping[str, Any]

    @property
    def place(self) -> Place:
        """The whole file."""
        return Place(self.file)


@dataclass(frozen=True, slots=True)
class Sources:
    """The project file and what it includes, in the order of `include`."""

    files: tuple[Source, ...]
    named: tuple[Path, ...]
    """The same with those that could not be read."""
    extra: tuple[Path, ...] = ()
    """The project's .env, if there is one."""
    missing: tuple[Path, ...] = ()
    """The project's .env, if there is none."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What a variable may refer to: the given environment, and the project's .env below it."""

    @property
    def complete(self) -> bool:
        """False if a file could not be read, so that a name that is missing may stand in it."""
        return len(self.files) == len(self.named)


def read(file: Path, environ: Mapping[str, str], findings: Findings) -> Sources:
    """Everything that belongs to the project file. Raises OSError if that can't be read."""
    env_file = file.parent / ".env"
    variables = dict(environ)
    has_env_file = env_file.is_file()
    if has_env_file and (uid := other_owner(env_file, file)) is not None:
        what = f"this belongs to {user_name(uid)}, whose variables could run commands as you"
        findings.add(Spot(env_file, 1, 1), what, "look through it, then allow it with `devloop trust`")
    elif has_env_file:
        try:
            variables = {**read_env_file(env_file, environ, findings), **variables}
        except OSError as error:
            findings.add(Spot(env_file, 1, 1), f"can't be read: {error.strerror}")
    extra, missing = ((env_file,), ()) if has_env_file else ((), (env_file,))
    first = _source(file, _content(file), variables, findings, project=None)
    if first is None:
        return Sources((), (file,), extra, missing, variables)
    files, named = [first], [file]
    table = {"include": first.data["include"]} if "include" in first.data else {}
    include = shaped(Head, table, first.place, findings)[0].include or ()
    for path, at in _included(first, include, findings):
        try:
            if (uid := other_owner(path, file)) is not None:
                what = f"include: {path} belongs to {user_name(uid)}, who could run commands as you"
                findings.add(at, what, "look through it, then allow it with `devloop trust`")
                named.append(path)
                continue
            source = _source(path, _content(path), variables, findings, project=first.place)
        except OSError as error:
            findings.add(at, f"{path}: can't be read: {error.strerror}")
            source = None
        named.append(path)
        if source is not None:
            files.append(source)
    return Sources(tuple(files), tuple(named), extra, missing, variables)


def read_own(file: Path, variables: Mapping[str, str], findings: Findings) -> Source | None:
    """The developer's own file, which no project has; None: there is none, or it can't be read, which is found."""
    try:
        return _source(file, _content(file), variables, findings, project=None)
    except FileNotFoundError:
        return None
    except OSError as error:
        findings.add(Spot(file, 1, 1), f"can't be read: {error.strerror}")
        return None


def _content(file: Path) -> bytes:
    """Raises OSError, also for what can't be a project file by its size."""
    return read_file(file, LARGEST)


def _source(
    file: Path, content: bytes, variables: Mapping[str, str], findings: Findings, *, project: Place | None
) -> Source | None:
    try:
        text = decode(content)
    except EncodingError as error:
        findings.add(Spot(file, error.line, error.column), error.what, f"TOML is always UTF-8; {error.hint}")
        return None
    if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE):
        findings.add(Spot(file, 1, 1), "this is not UTF-8 text, but UTF-16", f"TOML is always UTF-8; {SAVE_AS_UTF8}")
        return None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        findings.add(*_syntax(file, text, str(error)))
        return None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, brackets in brackets in brackets.
        what = "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        findings.add(Spot(file, 1, 1), f"can't be read: {what}")
        return None
    place = Place(file)
    # A dollar may also be written \u0024; without either, there is nothing to look for.
    plain = "$" not in text and "\\u" not in text.lower()
    data = raw if plain else {key: _resolved(key, value, variables, place, findings) for key, value in raw.items()}
    check_top_level(data, place, findings, project=project)
    return Source(file, text, data)


def _syntax(file: Path, text: str, message: str) -> tuple[Spot, str]:
    """Where tomllib stopped, and its sentence."""
    found = _WHERE.search(message)
    if found and found[1]:
        line, column = int(found[1]), int(found[2])
    else:
        lines = text.split("\n")
        line, column = len(lines), len(lines[-1]) + 1
    sentence = message[: found.start()] if found else message
    return Spot(file, line, column), f"not TOML: {sentence[:1].lower()}{sentence[1:]}"


def _resolved(key: str, value: Any, variables: Mapping[str, str], place: Place, findings: Findings) -> Any:
    # What later checks leave alone if a variable is missing: services.NAME.KEY, defaults.KEY, project.KEY.
    field = {"services": 3, "include": 1}.get(key, 2)
    return interpolated(value, variables, place.at(key), findings, field)


def _included(first: Source, patterns: tuple[str, ...], findings: Findings) -> list[tuple[Path, Place]]:
    """The included files, each once, with the pattern that named it first."""
    found: dict[Path, Place] = {}
    root = first.file.parent
    for index, pattern in enumerate(patterns):
        place = first.place.at("include", index)
        matches = sorted(glob.glob(pattern, root_dir=root, recursive=True))  # noqa: PTH207 - takes absolute ones too
        files = [path for match in matches if (path := (root / match).resolve()).is_file()]
        if not files:
            if glob.has_magic(pattern):
                findings.add(place, f"include: no file matches {quoted(pattern)}", f"it is looked for in {root}")
            else:
                findings.add(place, f"include: there is no file {quoted(pattern)}", f"it is looked for in {root}")
        for path in files:
            if path != first.file:
                found.setdefault(path, place)
    return list(found.items())

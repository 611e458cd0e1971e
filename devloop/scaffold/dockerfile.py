"""What a Dockerfile starts, and how it makes it: the stage that is built, with those that it is made from.

Read by hand: `dockerfile-parse` (2.0.1, August 2023) takes a comment within a continued line for its end, and knows
neither here-documents nor `# escape`; `dockerfile`, which wraps BuildKit's own parser, has wheels for one platform
and needs Go on all others. The rules are those of the Dockerfile reference.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from devloop.config.text import EncodingError, decode
from devloop.paths import read_file
from devloop.scaffold.files import MOST_BYTES

_INSTRUCTION = re.compile(r"^\s*([A-Za-z]+)(?:\s+(.*))?$", re.DOTALL)
_FLAG = re.compile(r"--[a-z][a-z-]*(?:=(?:\"[^\"]*\"|\S*))?\s+")
_DIRECTIVE = re.compile(r"^#\s*([A-Za-z]+)\s*=\s*(\S+)\s*$")
_HEREDOC = re.compile(r"""<<(-?)(["']?)([A-Za-z_][A-Za-z0-9_]*)\2""")
_VARIABLE = re.compile(r"(?<!\\)\$(?:(\w+)|\{(\w+)(?:(:?[-+])([^{}]*))?\})")

Words = list[str] | str
"""Exec form as a list, shell form as a string."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A COPY or ADD. `stage` is the one that it copies from; without, the build context."""

    sources: tuple[str, ...]
    target: str
    stage: Stage | None
    foreign: bool = False
    """Whether it copies from another image, or from a stage that is not there."""


@dataclass(frozen=True, slots=True)
class Run:
    """A RUN: its commands, and the folder they run in."""

    commands: str
    folder: str


@dataclass(slots=True)
class Stage:
    """One stage; a stage made FROM another one of the file starts out as that one."""

    entrypoint: Words = ""
    command: Words = ""
    workdir: str = "/"
    ports: list[int] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    steps: list[Copy | Run] = field(default_factory=list)
    shell: list[str] = field(default_factory=list)

    def child(self) -> Stage:
        """The stage that is made FROM this one."""
        return Stage(
            self.entrypoint, self.command, self.workdir, [*self.ports], dict(self.env), {}, [*self.steps], [*self.shell]
        )

    def path(self, text: str) -> str:
        """A path in the image, made absolute."""
        return posixpath.normpath(posixpath.join(self.workdir, text))


def read_stage(file: Path, target: str | None = None, args: Mapping[str, str] | None = None) -> Stage | None:
    """The stage that is built: `target`, or the last one. None if the file can't be read or has no stage."""
    try:
        text = decode(read_file(file, MOST_BYTES))
    except (OSError, EncodingError, ValueError):
        return None
    return parse_stage(text, target, args)


def parse_stage(text: str, target: str | None = None, args: Mapping[str, str] | None = None) -> Stage | None:
    """The same for a Dockerfile's text. `args` are the build's own."""
    given, globals_ = dict(args or {}), dict[str, str]()
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    count = 0
    for word, rest, documents in _instructions(text):
        known = {**globals_, **given} if stage is None else {**stage.args, **stage.env}
        if word == "ARG" and stage is None:
            name, sign, value = rest.partition("=")
            globals_[name.strip()] = given.get(name.strip(), _filled(_unquoted(value), known) if sign else "")
        elif word == "FROM":
            words = _FLAG.sub("", _filled(rest, {**globals_, **given}) + " ").split()
            stage = stages.get(words[0].lower(), Stage()).child() if words else Stage()
            stages[str(count)] = stage
            count += 1
            if len(words) > 2 and words[1].lower() == "as":
                stages[words[2].lower()] = stage
        elif stage is not None:
            _apply(stage, word, rest, documents, stages, {**globals_, **given})
    return stages.get(target.lower(), stage) if target else stage


def _instructions(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """(word in capitals, rest on one line, its here-documents)."""
    lines = text.replace("\r\n", "\n").split("\n")
    escape, position = "\\", 0
    for line in lines:
        if (directive := _DIRECTIVE.match(line)) is None:
            break
        if directive[1].lower() == "escape" and directive[2] in "\\`":
            escape = directive[2]
    continued = re.compile(rf"{re.escape(escape)}[ \t]*$")
    while position < len(lines):
        line = lines[position]
        position += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = [line]
        while continued.search(parts[-1]) and position < len(lines):
            parts[-1] = continued.sub(" ", parts[-1])
            # Comment lines and empty ones may stand within a continued one.
            while position < len(lines) and (not lines[position].strip() or lines[position].lstrip().startswith("#")):
                position += 1
            if position < len(lines):
                parts.append(lines[position])
                position += 1
        match = _INSTRUCTION.match("".join(parts))
        if match is None:
            continue
        word, rest = match.group(1).upper(), (match.group(2) or "").strip()
        if word == "ONBUILD":
            continue  # for images that are made from this one
        documents = []
        if word in ("RUN", "COPY", "ADD"):
            for dash, _, mark in _HEREDOC.findall(rest):
                end = next(
                    (
                        at
                        for at in range(position, len(lines))
                        if (lines[at].strip("\t") if dash else lines[at]) == mark
                    ),
                    len(lines),
                )
                documents.append("\n".join(lines[position:end]))
                position = end + 1
        yield word, rest, documents


def _apply(
    stage: Stage, word: str, rest: str, documents: list[str], stages: Mapping[str, Stage], given: Mapping[str, str]
) -> None:
    known = {**stage.args, **stage.env}
    match word:
        case "CMD":
            stage.command = _words(rest)
        case "ENTRYPOINT":
            stage.entrypoint, stage.command = _words(rest), ""  # an ENTRYPOINT resets the CMD of its base
        case "SHELL":
            words = _words(rest)
            stage.shell = words if isinstance(words, list) else []
        case "WORKDIR":
            stage.workdir = stage.path(_filled(_unquoted(rest), known))
        case "EXPOSE":
            filled = _filled(rest, known)
            stage.ports += [int(port) for port in re.findall(r"(?<!\S)(\d{1,5})(?:/tcp)?(?!\S)", filled)]
        case "ARG":
            name, sign, value = rest.partition("=")
            found = given.get(name.strip(), _filled(_unquoted(value), known) if sign else None)
            if found is not None:
                stage.args[name.strip()] = found
        case "ENV":
            stage.env.update({name: _filled(value, known) for name, value in _assignments(rest)})
        case "RUN":
            commands = _FLAG.sub("", rest + " ").strip() if rest.startswith("--") else rest
            words = _words(commands)
            line = shlex.join(words) if isinstance(words, list) else words
            line = "\n".join(documents) if documents else line
            stage.steps.append(Run(_filled(line, known), stage.workdir))
        case "COPY" | "ADD":
            _copy(stage, _filled(rest, known), stages)


def _copy(stage: Stage, rest: str, stages: Mapping[str, Stage]) -> None:
    source_stage = ""
    while match := _FLAG.match(rest):
        if match.group().startswith("--from="):
            source_stage = match.group().strip().removeprefix("--from=").strip('"')
        rest = rest[match.end() :]
    words = _words(rest)
    words = words if isinstance(words, list) else words.split()
    if len(words) > 1:
        base = stages.get(source_stage.lower())
        target = stage.path(words[-1]) + ("/" if words[-1].endswith(("/", ".")) or len(words) > 2 else "")
        stage.steps.append(Copy(tuple(words[:-1]), target, base, foreign=bool(source_stage) and base is None))


def _assignments(rest: str) -> list[tuple[str, str]]:
    """ENV's pairs, in both its forms."""
    name, space, value = rest.partition(" ")
    if space and "=" not in name:
        return [(name, value.strip())]
    try:
        return [(n, v) for n, sign, v in (each.partition("=") for each in shlex.split(rest)) if sign and n]
    except ValueError:
        return []


def _filled(text: str, known: Mapping[str, str]) -> str:
    """The text with the variables that are known; others stay for the shell."""

    def replace(match: re.Match[str]) -> str:
        name, sign, rest = match[1] or match[2], match[3] or "", match[4] or ""
        value = known.get(name)
        if sign.endswith("-") and not value:
            return rest
        if sign.endswith("+"):
            return rest if value else ""
        return match.group() if value is None else value

    return _VARIABLE.sub(replace, text)


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _words(rest: str) -> Words:
    """Exec form as a list, shell form as a string."""
    if rest.startswith("["):
        try:
            words = json.loads(rest)
        except (ValueError, RecursionError):
            return rest  # as Docker does: what is no JSON is shell form
        if isinstance(words, list):
            return [str(word) for word in words]
    return rest


def joined(entrypoint: Words, command: Words) -> Words:
    """The command that runs, by Docker's rules: a shell-form entrypoint takes no arguments."""
    if not entrypoint:
        return command
    if isinstance(entrypoint, str):
        return entrypoint
    if isinstance(command, str):
        return [*entrypoint, *(["/bin/sh", "-c", command] if command else [])]
    return [*entrypoint, *command]


def here(command: Words, workdir: str) -> Words:
    """The command with paths below the image's working folder made relative: that folder is the code's."""
    if workdir in ("", "/"):
        return command
    prefix = workdir.rstrip("/") + "/"
    if isinstance(command, list):
        words = [word.removeprefix(prefix) or "." for word in command]
        if words and words[0] != command[0] and "/" not in words[0]:
            words[0] = f"./{words[0]}"
        return words
    return re.sub(rf"(?<![^\s='\"]){re.escape(prefix)}", "./", command)


def as_typed(command: Words) -> Words:
    """One string where that reads better and means the same: no word needs quoting."""
    if isinstance(command, list) and shlex.join(command) == " ".join(command):
        return " ".join(command)
    return command

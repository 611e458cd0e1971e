"""What a Dockerfile starts: the last stage's ENTRYPOINT, CMD, WORKDIR and EXPOSE."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s*([A-Za-z]+)\s+(.*)$", re.DOTALL)
_FROM = re.compile(r"^(?:--platform=\S+\s+)?\S+(?:\s+as\s+(\S+))?", re.IGNORECASE)
_CONTINUED = re.compile(r"\\[ \t]*\n(?:[ \t]*#[^\n]*\n)*")  # comment lines may stand within a continued one


@dataclass(slots=True)
class Stage:
    """One stage; a stage made FROM another one of the file starts out as that one."""

    entrypoint: list[str] | str = ""
    command: list[str] | str = ""
    workdir: str = "/"
    ports: list[int] = field(default_factory=list)


def read_stage(file: Path, target: str | None = None) -> Stage | None:
    """The stage that is built: `target`, or the last one. None if the file can't be read or has no stage."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in _CONTINUED.sub(" ", text.replace("\r\n", "\n")).splitlines():
        if (match := _INSTRUCTION.match(line)) is None:
            continue
        word, rest = match.group(1).upper(), match.group(2).strip()
        if word == "FROM":
            base, _, name = rest.split()[-1 if rest.startswith("--") else 0], None, _FROM.match(rest)
            parent = stages.get(base.lower(), Stage())
            stage = Stage(parent.entrypoint, parent.command, parent.workdir, [*parent.ports])
            if name and name.group(1):
                stages[name.group(1).lower()] = stage
        elif stage is not None:
            _apply(stage, word, rest)
    return stages.get(target.lower(), stage) if target else stage


def _apply(stage: Stage, word: str, rest: str) -> None:
    if word == "CMD":
        stage.command = _words(rest)
    elif word == "ENTRYPOINT":
        stage.entrypoint, stage.command = _words(rest), ""  # an ENTRYPOINT resets the CMD of its base
    elif word == "WORKDIR":
        folder = rest.strip("\"'")
        stage.workdir = folder if folder.startswith("/") else f"{stage.workdir.rstrip('/')}/{folder}"
    elif word == "EXPOSE":
        stage.ports += [int(port) for port in re.findall(r"(?<!\S)(\d+)(?:/tcp)?(?!\S)", rest)]


def _words(rest: str) -> list[str] | str:
    """Exec form as a list, shell form as a string."""
    if rest.startswith("["):
        try:
            words = json.loads(rest)
        except ValueError:
            return rest  # as Docker does: what is no JSON is shell form
        return [str(word) for word in words]
    return rest


def joined(entrypoint: list[str] | str, command: list[str] | str) -> list[str] | str:
    """The command that runs, by Docker's rules: a shell-form entrypoint takes no arguments."""
    if not entrypoint:
        return command
    if isinstance(entrypoint, str):
        return entrypoint
    if isinstance(command, str):
        return [*entrypoint, *(["/bin/sh", "-c", command] if command else [])]
    return [*entrypoint, *command]


def here(command: list[str] | str, workdir: str) -> list[str] | str:
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


def as_typed(command: list[str] | str) -> list[str] | str:
    """One string where that reads better and means the same: no word needs quoting."""
    if isinstance(command, list) and shlex.join(command) == " ".join(command):
        return " ".join(command)
    return command

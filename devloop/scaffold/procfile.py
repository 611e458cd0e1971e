"""From a Procfile: `name: command` lines, as foreman, overmind, honcho and Heroku read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic_core import PydanticCustomError

from devloop.config import values
from devloop.config.envfile import read_env_file
from devloop.config.problems import Findings
from devloop.scaffold.draft import Draft, Value, literal, path_text
from devloop.scaffold.yaml_text import Sequence_, read_text, read_yaml

_LINE = re.compile(r"^([A-Za-z0-9_.-]+)\s*:\s*(.+)$")
_PORT = re.compile(r"\$\{?PORT\b")
_BEFORE = r"(?:^|[\s'\"(;&])"
_OWN_PORT = re.compile(rf"{_BEFORE}PORT=[\"']?(\d{{1,5}})\b")
_LIKE_PORT = re.compile(rf"{_BEFORE}(?:HTTP|SERVER|APP|WEB|LISTEN|NODE)_PORT=[\"']?(\d{{1,5}})\b")
_NO_PORT = re.compile(
    rf"\bunset\s+(?:-v\s+)?(?:\w+\s+)*PORT\b|\benv\s+(?:-\S+\s+|\S+=\S*\s+)*(?:-u\s*|--unset[= ])PORT\b"
    rf"|\benv\s+(?:-i|-|--ignore-environment)\s|{_BEFORE}PORT=(?![\"']?\$\{{?PORT\b)"
)
_FLAG = re.compile(
    r"(?:^|[\s'\"])(?:-p|--[\w.-]*port|-D[\w.]*port|-b|--bind|--listen|--address|--addr|-addr|-port|-l|-L|-a)"
    r"(?:\s+|=)?[\"']?(?:(?:tcp|https?)://)?(?:\[[^\]\s]*\]:|[A-Za-z0-9_.*-]*:)?(\d{2,5})(?=$|[\s\"'/),;])"
)
_POSITIONAL = re.compile(r"\b(?:http\.server|SimpleHTTPServer|runserver|TCP4?-LISTEN)[ :](\d{2,5})\b")
_LAST = re.compile(r"\s(?!-)\S+\s+(\d{4,5})[\"')]*$")
_BARE = re.compile(r"(?:^|\s)[\"']?(?:(?:localhost|\d{1,3}(?:\.\d{1,3}){3}|\[[^\]\s]*\]|\*)?:)(\d{2,5})(?=$|[\s\"'])")
_WATCHES_ITSELF = re.compile(r"\s(?:--watch|--reload|--hot|--live-reload|-w)(?:[\s=]|$)|\b(?:vite|nodemon|air)\b")
FIRST_PORT = 5000
"""Foreman's: the first process type gets 5000 as its PORT, the next 5100, and so on."""


@dataclass(slots=True)
class Procfile:
    """What a Procfile, and foreman's files beside it, say."""

    drafts: list[Draft]
    left_out: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Options:
    """What a `.foreman` file says: foreman's own options, without their dashes."""

    port: int | None = None
    env_files: tuple[str, ...] = (".env",)
    off: frozenset[str] = frozenset()


def from_procfile(file: Path, environ: Mapping[str, str] | None = None) -> Procfile:
    """A service for each process type. Raises ConfigError if the file can't be read."""
    text = read_text(file, file.name)
    made = Procfile([])
    options = _options(file.parent, made.left_out)
    first = options.port or _first_port(file.parent, options, environ or {}, made.left_out)
    env_files = [name for name in options.env_files if name == ".env" or (file.parent / name).is_file()]
    has_env = [path_text(name) + "?" for name in env_files if (file.parent / name).is_file()]
    counted: dict[str, Draft] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip().lstrip("\ufeff")
        if not stripped or stripped.startswith("#"):
            continue
        if (match := _LINE.match(stripped)) is None:
            made.left_out.append(f"{file.name}:{number}: not `name: command`, so it was left out")
            continue
        name, command = match.groups()
        # Process types are counted as foreman counts them, so that the ports are those people know.
        index = list(counted).index(name) if name in counted else len(counted)
        if name in counted:
            made.left_out.append(f"{file.name}:{number}: {name} is there twice; the later one counts")
        draft = _draft(name, _in_environment(file.parent, command.strip()), first + 100 * index)
        if has_env:
            draft.settings["env_file"] = has_env[0] if len(has_env) == 1 else has_env
        if name in options.off:
            draft.settings["mode"] = "off"
            draft.notes.append("Switched off by .foreman's formation.")
        counted[name] = draft
    made.drafts = list(counted.values())
    return made


def _draft(name: str, command: str, port: int) -> Draft:
    draft = Draft(name, {"command": _command(command)})
    if name == "release":
        draft.settings |= {"task": True, "mode": "off"}
        draft.notes.append("Heroku's release phase: runs once. By hand: devloop toggle release local")
        return draft
    if _WATCHES_ITSELF.search(command):
        draft.settings["watch"] = []
        draft.remarks["watch"] = "It watches its files itself."
    own = port_of(command)
    if own is not None:
        draft.settings["ports"] = {"http": own}
    elif _NO_PORT.search(command):
        draft.notes.append("It takes PORT out of its environment: put the port that it listens on in `ports`.")
    elif (name == "web" or _PORT.search(command)) and port < 65536:
        draft.settings |= {"env": {"PORT": str(port)}, "ports": {"http": port}}
    return draft


def _in_environment(folder: Path, command: str) -> str:
    """With the program of the folder's virtual environment, which whoever starts foreman has activated."""
    word = re.match(r"[\w.-]+(?=\s|$)", command)
    for name in (".venv", "venv"):
        if word is not None and (folder / name / "bin" / word[0]).is_file():
            return f"{name}/bin/{command}"
    return command


def port_of(command: str) -> int | None:
    """The port that the command itself names: `PORT=3000 …`, `--port 3000`, `-b 0.0.0.0:3000`, `:3000`."""
    if match := _OWN_PORT.search(command):
        return _valid(match[1])
    if _PORT.search(command):
        return None
    for pattern in (_LIKE_PORT, _FLAG, _POSITIONAL, _BARE, _LAST):
        if match := pattern.search(command):
            return _valid(match[1])
    return None


def _valid(text: str) -> int | None:
    return int(text) if 0 < int(text) < 65536 else None


def _command(text: str) -> Value:
    try:
        values.command_line(text)
    except PydanticCustomError:
        return ["/bin/sh", "-c", text.replace("$", "$$")]
    return literal(text)


def _first_port(folder: Path, options: _Options, environ: Mapping[str, str], left_out: list[str]) -> int:
    """Foreman's first port: PORT of its env files, else 5000."""
    for name in options.env_files:
        findings = Findings()
        try:
            found = read_env_file(folder / name, environ, findings)
        except (OSError, ValueError):
            continue
        left_out += [f"{name}:{each.line}:{each.column}: {each.message}" for each in findings.problems({})]
        if re.fullmatch(r"\d{1,5}", found.get("PORT", "")) and 0 < int(found["PORT"]) < 65536:
            return int(found["PORT"])
    return FIRST_PORT


def _options(folder: Path, left_out: list[str]) -> _Options:
    file = folder / ".foreman"
    if not file.is_file():
        return _Options()
    documents = read_yaml(file, file.name, left_out)
    data = documents[0] if documents else {}
    options = _Options()
    port = str(data.get("port", ""))
    if re.fullmatch(r"[1-9]\d{0,4}", port) and int(port) < 65536:
        options.port = int(port)
    env = data.get("env")
    names = [str(each) for each in env] if isinstance(env, Sequence_) else str(env).split(",") if env else []
    if names := [name.strip() for name in names if name.strip() and "\0" not in name]:
        options.env_files = tuple(names)
    formation = str(data.get("formation") or data.get("concurrency") or "")
    pairs = [each.partition("=") for each in formation.replace(" ", "").split(",")]
    options.off = frozenset(name for name, sign, count in pairs if sign and count == "0")
    return options


def procfile_of(folder: Path) -> Path | None:
    """The folder's Procfile: the one that .foreman names, Procfile.dev or Procfile."""
    names = ["Procfile.dev", "Procfile"]
    foreman = folder / ".foreman"
    if foreman.is_file():
        documents = read_yaml(foreman, foreman.name, [])
        if documents and isinstance(named := documents[0].get("procfile"), str) and "\0" not in named:
            names.insert(0, named)
    return next((folder / name for name in names if (folder / name).is_file()), None)

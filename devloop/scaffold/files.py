"""Reading a project's files for what they may say; a file that can't be read says nothing."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devloop.config.text import EncodingError, decode

MOST_BYTES = 2_000_000
"""Of a file, no more is looked at."""


def name_of(folder: Path) -> str:
    """The folder's own name."""
    return folder.resolve().name or "app"


def text_of(file: Path) -> str:
    """The file as text, empty if it is not there."""
    try:
        if not file.is_file():  # a pipe would never end
            return ""
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES)
    except (OSError, ValueError):
        return ""
    try:
        return decode(content)
    except EncodingError:
        return content.decode(errors="replace")


def port_number(text: str) -> int | None:
    """The digits as a port, None if they are none."""
    return int(text) if text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536 else None


def json_of(file: Path) -> Mapping[str, Any]:
    """The file as a JSON object, empty if it is none."""
    try:
        data = json.loads(text_of(file) or "{}")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def toml_of(file: Path) -> Mapping[str, Any]:
    """The file as TOML, empty if it is none."""
    try:
        return tomllib.loads(text_of(file))
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def unreadable(top: Path) -> list[str]:
    """Sentences on project files of the folder, and of those in it, that are not what their names say."""
    said = []
    try:
        folders = [top, *sorted(each for each in top.iterdir() if each.is_dir() and each.name[0] not in "._")[:50]]
    except OSError:
        return []
    for folder in folders:
        for name in ("package.json", "deno.json", "Cargo.toml", "pyproject.toml"):
            file = folder / name
            shown = file.relative_to(top).as_posix()
            if not (text := text_of(file)).strip():
                continue
            try:
                json.loads(text) if name.endswith(".json") else tomllib.loads(text)
            except json.JSONDecodeError as error:
                said.append(f"{shown}:{error.lineno}:{error.colno}: not JSON: {error.msg}, so it was not looked at")
            except (ValueError, RecursionError) as error:
                said.append(f"{shown}: not TOML: {error}, so it was not looked at")
    return said


def table(data: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The table at this path, empty if there is none."""
    for key in path:
        inner = data.get(key)
        data = inner if isinstance(inner, dict) else {}
    return data

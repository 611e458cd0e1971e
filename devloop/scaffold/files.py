"""Reading a project's files for what they may say; a file that can't be read says nothing."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def name_of(folder: Path) -> str:
    """The folder's own name."""
    return folder.resolve().name or "app"


def text_of(file: Path) -> str:
    """The file as text, empty if it is not there."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def json_of(file: Path) -> Mapping[str, Any]:
    """The file as a JSON object, empty if it is none."""
    try:
        data = json.loads(text_of(file) or "{}")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def toml_of(file: Path) -> Mapping[str, Any]:
    """The file as TOML, empty if it is none."""
    try:
        return tomllib.loads(text_of(file))
    except tomllib.TOMLDecodeError:
        return {}


def table(data: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The table at this path, empty if there is none."""
    for key in path:
        inner = data.get(key)
        data = inner if isinstance(inner, dict) else {}
    return data

"""What a person has chosen and does not want to choose again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Preferences:
    """A small JSON file. A file that can't be read or written is as good as none: it is only about looks."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values = self._read()

    @property
    def theme(self) -> str:
        """Name of a theme; empty if none was chosen."""
        value = self._values.get("theme", "")
        return value if isinstance(value, str) else ""

    @theme.setter
    def theme(self, name: str) -> None:
        if name != self.theme:
            self._values["theme"] = name
            self._write()

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_text()) if self._path else {}
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._values, indent=2) + "\n")
        except OSError:
            pass  # it holds until the end of this session

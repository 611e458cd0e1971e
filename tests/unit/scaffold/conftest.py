from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devloop.config.load import load
from devloop.scaffold import generate

Generate = Callable[..., dict[str, Any]]


@pytest.fixture
def made(tmp_path: Path) -> Generate:
    """Writes files (name → text), runs `generate`, has both tomllib and devloop read the result.

    Gives the services as they stand in the file; `text` is the file.
    """

    def make(files: dict[str, str], environ: dict[str, str] | None = None) -> dict[str, Any]:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        text = generate(tmp_path, environ or {})
        (tmp_path / "devloop.toml").write_text(text)
        data = tomllib.loads(text)
        project = load(tmp_path / "devloop.toml", environ or {})
        assert set(project.services) == set(data["services"])
        data["services"]["text"] = text
        data["services"]["project"] = project
        return data["services"]

    return make

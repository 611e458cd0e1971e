"""`up --headless`, apart from its engine."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devloop.commands import engine as running
from devloop.commands import up
from devloop.engine.engine import Engine
from devloop.protocol import ServiceStatus, State
from tests.unit.core.playbook import project, service


class Full(io.StringIO):
    """A standard error on a disk that is full."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_what_can_not_be_said_does_not_reach_the_engine(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run_engine(_: Path, __: list[str], *, on_engine: Callable[[object], None], agreed_to: str) -> bool:
        engine = Engine.__new__(Engine)
        engine.project = project(service("api"))
        on_engine(engine)
        assert engine.on_status is not None
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", Full())
            engine.on_status(ServiceStatus("api", "local", State.FAILED, "exited with 1", 0))
        return False

    monkeypatch.setattr(running, "run_engine", run_engine)
    with capfd.disabled():
        assert up._headless(Path("devloop.toml"), [], "") == 0

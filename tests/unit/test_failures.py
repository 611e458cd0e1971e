"""What the machine's limits prevent is no fault of devloop's."""

from __future__ import annotations

import errno

import pytest

from devloop import cli
from devloop.commands import control
from devloop.failures import explained, is_the_machines


def test_no_thread_is_a_limit_with_a_name() -> None:
    error = RuntimeError("can't start new thread")
    assert is_the_machines(error)
    told = explained(error)
    assert told.what == "no thread can be started" and "ulimit -u" in (told.hint or "")


@pytest.mark.parametrize("error", [RuntimeError("another"), ValueError(), OSError(errno.EINVAL, "?"), "words"])
def test_a_fault_stays_one(error: object) -> None:
    assert not is_the_machines(error)


def test_a_command_that_gets_no_thread_ends_with_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_thread(_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(control, "down", no_thread)
    assert cli.main(["down"]) == 1
    assert "no thread can be started" in capsys.readouterr().err

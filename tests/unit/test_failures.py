"""What the machine's limits prevent is no fault of devloop's."""

from __future__ import annotations

import errno
import resource

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


@pytest.mark.parametrize(
    ("hard", "told"),
    [
        (resource.RLIM_INFINITY, "ulimit -n 4096"),
        (4096, "ulimit -n 4096"),
        (1024, "1024 is the hard limit: an administrator raises it"),
    ],
)
def test_a_limit_is_raised_by_who_may(hard: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
    assert told in (explained(OSError(errno.EMFILE, "Too many open files", "a")).hint or "")


@pytest.mark.parametrize(("word", "level"), [("warn", "warning"), ("err", "error"), ("critical", "fatal")])
def test_levels_have_the_names_that_loggers_give_them(word: str, level: str) -> None:
    assert cli.parser().parse_args(["logs", "--level", word]).level == level

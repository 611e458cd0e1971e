"""What is said of services that are not ready."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from devloop.commands import report
from devloop.commands.report import coming, late
from devloop.protocol import AttachmentStatus, ServiceStatus, State


def status(name: str, state: State, reason: str = "", **more: Any) -> ServiceStatus:
    return ServiceStatus(name, "local", state, reason, 0, **more)


@pytest.mark.parametrize(
    ("state", "reason", "stuck", "line"),
    [
        (State.FAILED, "exited with 1", "", "api exited with 1"),
        (State.FAILED, "no such program: api", "", "api failed: no such program: api"),
        (State.BACKOFF, "ended by signal 9; attempt 2 follows", "", "api ended by signal 9; attempt 2 follows"),
        (
            State.CRASH_LOOP,
            "exited with 1, 5 times in a row",
            "",
            "api exited with 1, 5 times in a row; it starts again when a watched file changes, "
            "or by `devloop restart api`",
        ),
        (
            State.WAITING,
            "for seed, which exited with 1",
            "seed",
            "api waits for seed, which exited with 1; see `devloop logs seed`",
        ),
        (State.WAITING, "for seed", "", ""),
        (
            State.STARTING,
            "not ready: nothing listens on localhost:1",
            "",
            "api is not ready: nothing listens on localhost:1",
        ),
        (State.STARTING, "waiting: nothing listens on localhost:1", "", ""),
        (
            State.READY,
            "build exited with 2; the old process goes on",
            "",
            "api: build exited with 2; the old process goes on",
        ),
        (State.READY, "building", "", ""),
        (State.READY, "", "", ""),
    ],
)
def test_a_line_on_what_is_wrong(state: State, reason: str, stuck: str, line: str) -> None:
    assert report.failure(status("api", state, reason, stuck=stuck)) == line


async def test_each_is_said_once_and_that_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    reporter = report.Reporter(said.append)
    late = status("api", State.STARTING, "not ready: no answer within 1 s")
    reporter.status(late)
    reporter.status(late)
    assert said == ["api is not ready: no answer within 1 s"]
    reporter.status(status("api", State.READY))
    reporter.status(status("api", State.READY))
    assert said[1:] == ["api is ready now"]
    reporter.status(late)
    assert len(said) == 3


async def test_where_a_service_is_found_is_said_once_and_anew_where_that_changes() -> None:
    said: list[str] = []
    reporter = report.Reporter(said.append)
    for published, state in (
        ({"http": 8080, "debug": 9229}, State.STARTING),
        ({}, State.READY),
        ({"http": 8080, "debug": 9229}, State.READY),
        ({"http": 8080, "debug": 9229}, State.STARTING),
        ({"http": 8080, "debug": 9229}, State.READY),
        ({"https": 8443}, State.READY),
    ):
        reporter.status(status("api", state, published=published))
    assert said == [
        "api is ready at http://localhost:8080, localhost:9229",
        "api is ready at https://localhost:8443",
    ]


async def test_a_short_wait_is_not_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PATIENCE", 0.0)
    said: list[str] = []
    reporter = report.Reporter(said.append)
    reporter.status(status("api", State.WAITING, "for store"))
    reporter.status(status("api", State.STARTING))
    reporter.status(status("job", State.WAITING, "next run 12:00:00", next_at=1))
    reporter.status(status("web", State.WAITING, "for api"))
    while not said:  # noqa: ASYNC110 - the loop's timers have no event
        await asyncio.sleep(0)
    assert said == ["web waits for api"]


def test_who_waits_for_a_service_waits_for_its_attachments_and_hears_which() -> None:
    def held(phase: str, reason: str = "") -> AttachmentStatus:
        return AttachmentStatus("intercept", "api", phase, 0, reason=reason)

    ready = status("api", State.READY, attachments=(held("attaching"),))
    assert coming(ready, ready.attachments[0])
    assert late(ready).endswith("; its intercept of api is attaching)")
    for phase, state, waits in (
        ("attached", State.READY, False),
        ("refused", State.READY, False),
        ("failed open", State.READY, True),
        # The original answers for as long as it does not run: nothing to wait for.
        ("failed open", State.CRASH_LOOP, False),
    ):
        assert coming(status("api", state), held(phase)) is waits
    open_ = status("api", State.READY, attachments=(held("failed open", "the link is lost"),))
    assert "its intercept of api is failed open: the link is lost" in late(open_)

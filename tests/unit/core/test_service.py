"""The life of one service, event by event."""

from __future__ import annotations

import pytest

from devloop.config.model import (
    MS,
    SECOND,
    Command,
    Mode,
    Reload,
    ReloadKind,
    Restart,
    RestartPolicy,
)
from devloop.core import commands as do
from devloop.core import events as ev
from devloop.protocol import Cause, Outcome, State
from tests.unit.core.playbook import Playbook, service

MAKE = Command(("make",), "make")


def test_a_start_goes_through_starting_to_ready_and_is_a_loop() -> None:
    book = Playbook(service("api"))
    assert book.start("api") == ["StartProcess api 1"]
    book.tick(2)
    assert book.started("api") == ["StartProbes api 1"]
    assert book.state("api") is State.STARTING
    book.tick(30)
    assert book.ready("api") == []
    assert book.state("api") is State.READY
    assert book.loops[0].cause is Cause.START
    assert book.stamps() == {"detected": 0, "spawned": 2, "ready": 32}


def test_starting_what_runs_does_nothing() -> None:
    book = Playbook(service("api"))
    book.up("api")
    assert book.start("api") == []


def test_a_save_stops_the_old_process_while_the_burst_settles() -> None:
    book = Playbook(service("api"))
    book.up("api")
    book.tick(5000)
    assert book.changed("api") == ["StopProcess api 1"]
    book.tick(1)
    assert book.ended("api") == [], "the burst is not over: nothing may start yet"
    book.tick(3)
    assert book.settled("api") == ["StartProcess api 2"]
    book.tick(1)
    book.started("api")
    book.tick(10)
    book.ready("api")
    assert book.outcomes() == [("api", Outcome.OK)]
    loop = book.loops[0]
    assert (loop.cause, loop.files) == (Cause.CHANGE, ("main.py",))
    assert list(loop.stamps) == ["edited", "detected", "stopped", "settled", "spawned", "ready"]
    assert book.stamps()["ready"] == 16


def test_a_process_that_outlasts_the_burst_is_waited_for() -> None:
    book = Playbook(service("api"))
    book.up("api")
    book.changed("api")
    assert book.settled("api") == []
    assert book.state("api") is State.STOPPING
    assert book.ended("api") == ["StartProcess api 2"]


def test_a_second_file_of_the_burst_joins_the_loop() -> None:
    book = Playbook(service("api"))
    book.up("api")
    book.changed("api", "a.py")
    assert book.changed("api", "b.py") == []
    book.settled("api")
    book.ended("api")
    book.started("api")
    book.ready("api")
    assert [loop.files for loop in book.loops] == [("a.py", "b.py")]


def test_a_save_during_the_start_supersedes_the_loop() -> None:
    book = Playbook(service("api"))
    book.up("api")
    book.changed("api")
    book.ended("api")
    book.settled("api")
    book.started("api")
    assert book.changed("api") == ["StopProcess api 2"]
    assert book.outcomes() == [("api", Outcome.SUPERSEDED)]
    book.settled("api")
    assert book.ended("api") == ["StartProcess api 3"]


def test_a_save_between_the_start_and_the_word_that_it_runs() -> None:
    book = Playbook(service("api"))
    book.start("api")
    assert book.changed("api") == ["StopProcess api 1"]
    assert book.started("api") == [], "it is to end: no probes for it"
    book.settled("api")
    assert book.ended("api") == ["StartProcess api 2"]


def test_what_an_old_run_says_is_ignored() -> None:
    book = Playbook(service("api"))
    book.up("api")
    book.feed(ev.RestartRequested("api"))
    book.ended("api")
    book.started("api")
    assert book.feed(ev.ProcessEnded("api", 1, 1)) == []
    assert book.feed(ev.BecameReady("api", 1)) == []
    assert book.state("api") is State.STARTING


class TestBuild:
    def test_the_old_process_runs_until_the_build_has_succeeded(self) -> None:
        book = Playbook(service("api", build=MAKE))
        assert book.start("api") == ["StartBuild api 1"]
        assert book.state("api") is State.BUILDING
        assert book.built("api") == ["StartProcess api 2"]
        book.started("api")
        book.ready("api")
        book.loops.clear()
        assert book.changed("api") == []
        assert book.settled("api") == ["StartBuild api 2"]
        assert book.state("api") is State.READY, "the old process still serves"
        assert book.built("api") == ["StopProcess api 2"]
        assert book.ended("api") == ["StartProcess api 3"]
        book.started("api")
        book.ready("api")
        assert list(book.loops[0].stamps) == [
            "edited", "detected", "settled", "built", "stopped", "spawned", "ready",
        ]  # fmt: skip

    def test_a_failed_build_keeps_the_old_process(self) -> None:
        book = self.running()
        book.changed("api")
        book.settled("api")
        assert book.built("api", "build exited with 2") == []
        assert book.state("api") is State.READY
        assert "build exited with 2" in book.reason("api")
        assert book.supervisor.services["api"].stale
        assert book.outcomes() == [("api", Outcome.FAILED)]
        book.changed("api")
        assert book.settled("api") == ["StartBuild api 2"], "the next save tries again"

    def test_with_nothing_running_a_failed_build_is_a_failure(self) -> None:
        book = Playbook(service("api", build=MAKE))
        book.start("api")
        book.built("api", "build exited with 2")
        assert (book.state("api"), book.reason("api")) == (State.FAILED, "build exited with 2")
        book.changed("api")
        assert book.settled("api") == ["StartBuild api 2"]

    def test_a_save_cancels_the_build_that_runs(self) -> None:
        book = self.running()
        book.changed("api")
        book.settled("api")
        assert book.changed("api") == ["CancelBuild api 2"]
        assert book.settled("api") == ["StartBuild api 2"]
        assert book.outcomes() == [("api", Outcome.SUPERSEDED)]

    def test_a_crash_during_the_build_waits_for_the_build(self) -> None:
        book = self.running()
        book.changed("api")
        book.settled("api")
        assert book.ended("api", 1) == []
        assert book.state("api") is State.BUILDING
        assert book.built("api") == ["StartProcess api 3"]

    def test_stop_cancels_it(self) -> None:
        book = Playbook(service("api", build=MAKE))
        book.start("api")
        assert book.feed(ev.StopRequested(("api",))) == ["EndBuildServers api", "CancelBuild api 1"]
        assert book.state("api") is State.STOPPED

    def running(self) -> Playbook:
        book = Playbook(service("api", build=MAKE))
        book.start("api")
        book.built("api")
        book.started("api")
        book.ready("api")
        book.loops.clear()
        return book


class TestReload:
    def test_by_signal_the_process_stays(self) -> None:
        book = Playbook(service("api", reload=Reload(ReloadKind.SIGNAL, signal=1)))
        book.up("api")
        assert book.changed("api") == []
        assert book.settled("api") == ["ReloadProcess api 1"]
        assert book.feed(ev.ReloadEnded("api", 1)) == ["StartProbes api 1"]
        book.ready("api")
        assert book.outcomes() == [("api", Outcome.OK)]

    def test_a_failed_reload_command_is_a_failed_loop(self) -> None:
        book = Playbook(service("api", reload=Reload(ReloadKind.EXEC, command=MAKE)))
        book.up("api")
        book.changed("api")
        book.settled("api")
        book.feed(ev.ReloadEnded("api", 1, "`make` exited with 1"))
        assert book.outcomes() == [("api", Outcome.FAILED)]
        assert book.state("api") is State.READY

    def test_by_signal_what_does_not_run_is_started(self) -> None:
        book = Playbook(service("api", reload=Reload(ReloadKind.SIGNAL, signal=1)))
        book.start("api")
        book.feed(ev.ProcessNotStarted("api", 1, "no such program: api"))
        assert book.state("api") is State.FAILED
        book.changed("api")
        assert book.settled("api") == ["StartProcess api 2"]

    def test_manual_only_marks_it_stale(self) -> None:
        book = Playbook(service("api", reload=Reload(ReloadKind.MANUAL), build=MAKE))
        book.start("api")
        book.built("api")
        book.started("api")
        book.ready("api")
        assert book.changed("api") + book.settled("api") == []
        assert book.supervisor.services["api"].stale
        assert book.feed(ev.RestartRequested("api")) == ["StartBuild api 2"], "a stale one is built first"


class TestFailure:
    def test_backoff_doubles_up_to_the_crash_loop(self) -> None:
        policy = RestartPolicy(delay=100 * MS, max_delay=300 * MS, limit=5)
        book = Playbook(service("api", restart=policy))
        book.start("api")
        delays = []
        for _ in range(4):
            book.started("api")
            assert book.ended("api", 1) == ["SetBackoff api"]
            assert book.state("api") is State.BACKOFF
            delays.append((book.backoffs["api"].at - book.now) / MS)
            book.now = book.backoffs["api"].at
            assert book.feed(ev.BackoffEnded("api", book.run("api"))) == [f"StartProcess api {book.run('api')}"]
        assert delays == [100, 200, 300, 300]
        book.started("api")
        assert book.ended("api", 1) == []
        assert book.state("api") is State.CRASH_LOOP
        assert "5 times in a row" in book.told[-1].text

    def test_a_save_ends_a_crash_loop(self) -> None:
        book = Playbook(service("api", restart=RestartPolicy(limit=1)))
        book.start("api")
        book.started("api")
        book.ended("api", 1)
        assert book.state("api") is State.CRASH_LOOP
        book.changed("api")
        assert book.settled("api") == ["StartProcess api 2"]

    def test_a_save_during_the_backoff_starts_at_once(self) -> None:
        book = Playbook(service("api"))
        book.start("api")
        book.started("api")
        book.ended("api", 1)
        assert book.changed("api") == ["ClearBackoff api"]
        assert book.settled("api") == ["StartProcess api 2"]

    def test_one_that_ran_long_starts_counting_anew(self) -> None:
        book = Playbook(service("api", restart=RestartPolicy(limit=2, window=10 * SECOND)))
        book.start("api")
        for _ in range(5):
            book.started("api")
            book.tick(11_000)
            assert book.ended("api", 1) == ["SetBackoff api"]
            book.feed(ev.BackoffEnded("api", book.run("api")))

    @pytest.mark.parametrize(
        ("policy", "code", "state"),
        [
            (Restart.NEVER, 1, State.FAILED),
            (Restart.NEVER, 0, State.COMPLETED),
            (Restart.ON_FAILURE, 0, State.COMPLETED),
            (Restart.ON_FAILURE, 1, State.BACKOFF),
            (Restart.ON_FAILURE, -11, State.BACKOFF),
            (Restart.ALWAYS, 0, State.BACKOFF),
            (Restart.ALWAYS, 1, State.BACKOFF),
        ],
    )
    def test_policies(self, policy: Restart, code: int, state: State) -> None:
        book = Playbook(service("api", restart=RestartPolicy(policy)))
        book.up("api")
        book.ended("api", code)
        assert book.state("api") is state

    def test_an_end_before_ready_is_a_failed_loop(self) -> None:
        book = Playbook(service("api"))
        book.start("api")
        book.started("api")
        book.ended("api", 3)
        assert book.outcomes() == [("api", Outcome.FAILED)]
        assert book.loops[0].detail == "exited with 3"

    def test_not_alive_is_stopped_and_counts_as_a_failure(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        assert book.feed(ev.NotAlive("api", 1, "no answer within 1 s")) == ["StopProcess api 1"]
        assert book.ended("api", -15) == ["SetBackoff api"]
        assert "not alive: no answer within 1 s" in book.reason("api")

    def test_late_readiness_is_said_and_may_still_come(self) -> None:
        book = Playbook(service("api"))
        book.start("api")
        book.started("api")
        book.feed(ev.NotReadyInTime("api", 1, "nothing listens on localhost:80"))
        assert book.outcomes() == [("api", Outcome.FAILED)]
        assert "nothing listens" in book.reason("api")
        book.ready("api")
        assert (book.state("api"), book.reason("api")) == (State.READY, "")

    def test_why_it_is_not_ready_is_said_while_it_waits(self) -> None:
        book = Playbook(service("api"))
        book.start("api")
        book.started("api")
        book.feed(ev.NotReadyYet("api", 1, "GET /healthz answered 503"))
        assert (book.state("api"), book.reason("api")) == (State.STARTING, "waiting: GET /healthz answered 503")
        book.feed(ev.NotReadyInTime("api", 1, "GET /healthz answered 503"))
        book.feed(ev.NotReadyYet("api", 1, "nothing listens on localhost:80"))
        assert book.reason("api") == "not ready: nothing listens on localhost:80"
        book.ready("api")
        assert (book.state("api"), book.reason("api")) == (State.READY, "")
        book.feed(ev.NotReadyYet("api", 1, "too late to matter"))
        assert (book.state("api"), book.reason("api")) == (State.READY, "")

    def test_survivors_are_named(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        book.feed(ev.StopRequested(("api",)))
        book.ended("api", -9, survivors=("77 postgres",))
        assert "77 postgres" in book.told[-1].text


class TestTask:
    def test_its_success_is_completed(self) -> None:
        book = Playbook(service("seed", task=True))
        book.start("seed")
        assert book.started("seed") == [], "a task is not probed"
        book.ended("seed", 0)
        assert book.state("seed") is State.COMPLETED
        assert book.outcomes() == [("seed", Outcome.OK)]
        assert book.start("seed") == [], "done is done"
        assert book.feed(ev.RestartRequested("seed")) == ["StartProcess seed 2"]

    def test_its_failure_is_not_tried_again(self) -> None:
        book = Playbook(service("seed", task=True))
        book.start("seed")
        book.started("seed")
        assert book.ended("seed", 1) == []
        assert book.state("seed") is State.FAILED

    def test_its_failure_is_tried_again_where_that_is_asked_for(self) -> None:
        book = Playbook(service("seed", task=True, restart=RestartPolicy(Restart.ON_FAILURE, delay=100 * MS)))
        book.start("seed")
        for run, delay in ((1, 100), (2, 200)):
            book.started("seed")
            assert book.ended("seed", 1) == ["SetBackoff seed"]
            assert (book.state("seed"), book.reason("seed")) == (
                State.BACKOFF,
                f"exited with 1; attempt {run + 1} follows",
            )
            assert (book.backoffs["seed"].at - book.now) / MS == delay
            assert book.feed(ev.BackoffEnded("seed", run)) == [f"StartProcess seed {run + 1}"]
        assert book.started("seed") == [], "a task is not probed"
        assert book.ended("seed", 0) == []
        assert book.state("seed") is State.COMPLETED
        assert book.outcomes() == [("seed", outcome) for outcome in (Outcome.FAILED, Outcome.FAILED, Outcome.OK)]

    def test_its_failures_count_however_long_it_has_run(self) -> None:
        policy = RestartPolicy(Restart.ON_FAILURE, limit=2, window=10 * SECOND)
        book = Playbook(service("seed", task=True, watch=(), restart=policy))
        book.start("seed")
        book.started("seed")
        book.tick(60_000)
        assert book.ended("seed", 1) == ["SetBackoff seed"]
        book.feed(ev.BackoffEnded("seed", 1))
        book.started("seed")
        book.tick(60_000)
        assert book.ended("seed", 1) == []
        assert (book.state("seed"), book.reason("seed")) == (State.CRASH_LOOP, "exited with 1, 2 times in a row")
        assert book.told[-1].hint == "it starts again by `devloop restart`"
        assert book.feed(ev.RestartRequested("seed")) == ["StartProcess seed 3"]
        book.started("seed")
        assert book.ended("seed", 1) == ["SetBackoff seed"], "a new start is a new count"

    def test_what_can_not_be_started_is_not_tried_again(self) -> None:
        book = Playbook(service("seed", task=True, restart=RestartPolicy(Restart.ON_FAILURE)))
        book.start("seed")
        assert book.feed(ev.ProcessNotStarted("seed", 1, "no such program: seed")) == []
        assert book.state("seed") is State.FAILED

    def test_stopped_between_two_attempts(self) -> None:
        book = Playbook(service("seed", task=True, restart=RestartPolicy(Restart.ON_FAILURE)))
        book.start("seed")
        book.started("seed")
        book.ended("seed", 1)
        assert book.feed(ev.StopRequested(("seed",))) == ["ClearBackoff seed"]
        assert book.state("seed") is State.STOPPED


class TestStop:
    def test_and_start_again(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        assert book.feed(ev.StopRequested(("api",))) == ["StopProcess api 1"]
        assert book.ended("api") == []
        assert book.state("api") is State.STOPPED
        assert book.changed("api") == [], "a save does not start what was stopped"
        assert book.start("api") == ["StartProcess api 2"]

    def test_a_start_during_the_stop_comes_after_it(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        book.feed(ev.StopRequested(("api",)))
        assert book.start("api") == []
        assert book.ended("api") == ["StartProcess api 2"]

    def test_off_and_back(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        assert book.feed(ev.ModeRequested("api", Mode.OFF)) == ["StopProcess api 1"]
        book.ended("api")
        assert book.state("api") is State.OFF
        assert book.feed(ev.RestartRequested("api")) == [], "what is off is not restarted"
        assert book.feed(ev.ModeRequested("api", Mode.LOCAL)) == ["StartProcess api 2"]


class TestFlap:
    def reload(self, book: Playbook) -> list[str]:
        """A change 30 ms after the start, up to the next start; what the change led to."""
        book.tick(30)
        commands = book.changed("api", "out.json")
        book.ended("api")
        book.settled("api")
        return commands

    def test_a_service_that_writes_what_it_watches_is_tried_and_caught(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        for _ in range(3):
            assert self.reload(book) == [f"StopProcess api {book.run('api') - 1}"]
            book.started("api")
            book.ready("api")
        assert self.reload(book) == ["SetBackoff api", "StopProcess api 4"]
        assert book.state("api") is State.WAITING
        assert "out.json" in book.reason("api")
        book.now = book.backoffs["api"].at
        assert book.feed(ev.BackoffEnded("api", 4)) == ["StartProcess api 5"]
        book.started("api")
        book.ready("api")
        book.tick(30)
        assert book.changed("api", "out.json") == ["IgnoreFiles api out.json"]
        assert book.state("api") is State.READY
        assert "out.json" in book.told[-1].text

    def test_its_writing_may_be_seen_before_its_start_is(self) -> None:
        book = Playbook(service("api"))
        book.start("api")
        for run in (1, 2, 3):
            assert book.changed("api", "out.json") == [f"StopProcess api {run}"]
            book.started("api")
            book.ended("api")
            assert book.settled("api") == [f"StartProcess api {run + 1}"]
        assert self.reload(book) == ["SetBackoff api", "StopProcess api 4"]
        book.now = book.backoffs["api"].at
        book.feed(ev.BackoffEnded("api", 4))
        assert book.changed("api", "out.json") == ["IgnoreFiles api out.json"]

    def test_a_change_during_the_trial_acquits_and_starts(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        for _ in range(3):
            self.reload(book)
            book.started("api")
        self.reload(book)
        assert book.changed("api", "out.json") == ["ClearBackoff api"]
        assert book.settled("api") == ["StartProcess api 5"]

    def test_a_restart_by_hand_ends_the_trial(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        for _ in range(3):
            self.reload(book)
            book.started("api")
        self.reload(book)
        assert book.feed(ev.RestartRequested("api")) == ["ClearBackoff api", "StartProcess api 5"]


def test_one_that_is_wanted_again_while_it_ends_is_told_of() -> None:
    """What connects to it waits from then on, and clients show where it is."""
    book = Playbook(service("api"))
    book.up("api")
    assert book.feed(ev.ModeRequested("api", Mode.OFF)) == ["StopProcess api 1"]
    commands = book.supervisor.handle(ev.ModeRequested("api", Mode.LOCAL), book.now)
    assert do.PublishStatus("api") in commands
    assert book.ended("api") == ["StartProcess api 2"]

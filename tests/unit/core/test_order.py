"""Who waits for whom and in vain, what a restart takes along, tasks by the clock, and when all is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devloop.config.model import (
    SECOND,
    Command,
    Condition,
    Mode,
    Reload,
    ReloadKind,
    Restart,
    RestartPolicy,
    Schedule,
    Service,
)
from devloop.core import events as ev
from devloop.core.supervisor import Supervisor
from devloop.protocol import Cause, Outcome, State
from tests.unit.core.playbook import Playbook, project, service


def task(name: str, *depends_on: str, **fields: object) -> Service:
    return service(name, *depends_on, **{"task": True, "watch": (), **fields})


def still(name: str, *depends_on: str, **fields: object) -> Service:
    """A service that watches nothing."""
    return service(name, *depends_on, **{"watch": (), **fields})


def follower(name: str, *depends_on: str, **fields: object) -> Service:
    """A service that is restarted with all that it depends on."""
    return replace(service(name, *depends_on, **fields), restarts_with=tuple(d.partition(":")[0] for d in depends_on))


def fail(book: Playbook, name: str, code: int = 1) -> list[str]:
    book.started(name)
    return book.ended(name, code)


def stuck(book: Playbook, name: str) -> str:
    life = book.supervisor.services[name]
    return life.stuck if life.state is State.WAITING else ""


class TestInVain:
    def test_the_cause_is_named_through_the_whole_chain(self) -> None:
        book = Playbook(service("web", "api"), service("api", "seed:completed"), service("seed", task=True))
        book.start("web", "api", "seed")
        assert (book.reason("web"), stuck(book, "web")) == ("for api", "")
        fail(book, "seed")
        assert (book.reason("api"), stuck(book, "api")) == ("for seed, which exited with 1", "seed")
        assert book.reason("web") == "for api, which waits for seed, which exited with 1"
        assert stuck(book, "web") == "seed"

    def test_the_cause_is_the_one_that_does_not_come(self) -> None:
        book = Playbook(
            service("web", "api"), service("api", "db", "seed:completed"), service("db"), service("seed", task=True)
        )
        book.start("web", "api", "db", "seed")
        fail(book, "seed")
        assert book.reason("web") == "for api, which waits for seed, which exited with 1"  # db is on its way
        book.start("seed", "web")
        assert (book.reason("web"), stuck(book, "web")) == ("for api", "")

    def test_many_layers_cost_no_more_than_their_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = 0
        before = Supervisor._is_met

        def is_met(supervisor: Supervisor, name: str, condition: Condition) -> bool:
            nonlocal asked
            asked += 1
            return before(supervisor, name, condition)

        layers = [[f"s{layer}-{n}" for n in range(3)] for layer in range(9)]
        links = {name: above for above, layer in zip([[], *layers], layers, strict=False) for name in layer}
        book = Playbook(*(service(name, *links[name]) for name in links))
        book.start(*links)
        monkeypatch.setattr(Supervisor, "_is_met", is_met)
        book.started("s0-0")
        assert asked < 20 * sum(map(len, links.values()))

    def test_a_new_try_takes_it_back(self) -> None:
        book = Playbook(service("web", "api"), service("api", "seed:completed"), service("seed", task=True))
        book.start("web")
        fail(book, "seed")
        book.feed(ev.RestartRequested("seed"))
        assert (book.reason("web"), book.reason("api"), stuck(book, "web")) == ("for api", "for seed to complete", "")
        book.started("seed")
        assert book.ended("seed", 0) == ["StartProcess api 1"]

    def test_a_crash_loop_counts_and_a_backoff_does_not(self) -> None:
        book = Playbook(service("store", restart=RestartPolicy(limit=2)), service("api", "store"))
        book.start("api")
        fail(book, "store")
        assert (book.state("store"), stuck(book, "api")) == (State.BACKOFF, "")
        book.feed(ev.BackoffEnded("store", book.run("store")))
        fail(book, "store")
        assert book.reason("api") == "for store, which exited with 1, 2 times in a row"
        assert stuck(book, "api") == "store"

    def test_what_was_never_started(self) -> None:
        book = Playbook(service("store"), service("api", "store"))
        book.start("api")
        book.feed(ev.ProcessNotStarted("store", 1, "no such program: store"))
        assert book.reason("api") == "for store, which failed: no such program: store"

    def test_what_was_stopped(self) -> None:
        book = Playbook(service("store"), service("api", "store"))
        book.start("api")
        book.started("store")
        book.feed(ev.StopRequested(("store",)))
        book.ended("store")
        assert (book.reason("api"), stuck(book, "api")) == ("for store, which is stopped", "store")

    def test_not_being_ready_in_time_is_not_the_end(self) -> None:
        book = Playbook(service("store"), service("api", "store"))
        book.start("api")
        book.started("store")
        book.feed(ev.NotReadyInTime("store", 1, "nothing listens"))
        assert stuck(book, "api") == ""


class TestRestartsWith:
    def running(self, *services: Service) -> Playbook:
        book = Playbook(*services)
        for each in services:
            book.start(each.name)
            book.started(each.name)
            book.ready(each.name)
        return book

    def renew(self, book: Playbook, name: str) -> list[str]:
        """Restart it, until it is ready."""
        book.feed(ev.RestartRequested(name))
        book.ended(name)
        book.started(name)
        return book.ready(name)

    def test_it_is_restarted_once_that_is_ready_again(self) -> None:
        book = self.running(service("store"), follower("api", "store"))
        book.feed(ev.RestartRequested("store"))
        assert book.state("api") is State.READY
        assert book.ended("store") == ["StartProcess store 2"]
        assert book.started("store") == ["StartProbes store 2"]
        assert book.ready("store") == ["StopProcess api 1"]
        assert book.ended("api") == ["StartProcess api 2"]
        book.started("api")
        assert book.ready("api") == [], "and no more"
        assert book.loops[-1].cause is Cause.DEPENDENCY

    def test_a_change_counts_and_a_start_after_a_stop(self) -> None:
        book = self.running(service("store"), follower("api", "store"))
        book.changed("store")
        book.settled("store")
        book.ended("store")
        book.started("store")
        assert book.ready("store") == ["StopProcess api 1"]
        book.ended("api")
        book.started("api")
        book.ready("api")
        book.feed(ev.StopRequested(("store",)))
        assert book.ended("store") == []
        assert book.state("api") is State.READY
        book.start("store")
        book.started("store")
        assert book.ready("store") == ["StopProcess api 2"]

    def test_a_crash_and_a_reload_by_itself_do_not_count(self) -> None:
        book = self.running(service("store", reload=Reload(ReloadKind.SIGNAL, signal=1)), follower("api", "store"))
        book.changed("store")
        book.settled("store")
        book.feed(ev.ReloadEnded("store", 1))
        assert book.ready("store") == []
        book.ended("store", 1)
        book.feed(ev.BackoffEnded("store", book.run("store")))
        book.started("store")
        assert book.ready("store") == []

    def test_chains(self) -> None:
        book = self.running(service("store"), follower("api", "store"), follower("web", "api"))
        assert self.renew(book, "store") == ["StopProcess api 1"]
        book.ended("api")
        book.started("api")
        assert book.ready("api") == ["StopProcess web 1"]

    def test_without_restart_it_goes_on(self) -> None:
        book = self.running(service("store"), service("api", "store"))
        assert self.renew(book, "store") == []

    def test_the_first_start_is_no_restart(self) -> None:
        book = Playbook(service("store"), follower("api", "store"))
        book.start("api")
        book.started("store")
        assert book.ready("store") == ["StartProcess api 1"]
        book.started("api")
        assert book.ready("api") == []

    def test_one_that_is_stopped_stays_so(self) -> None:
        book = self.running(service("store"), follower("api", "store"))
        book.feed(ev.StopRequested(("api",)))
        book.ended("api")
        assert self.renew(book, "store") == []
        assert book.start("api") == ["StartProcess api 2"]
        book.started("api")
        assert book.ready("api") == []

    def test_one_that_started_meanwhile_is_restarted_all_the_same(self) -> None:
        book = self.running(service("store"), follower("api", "store"))
        book.feed(ev.RestartRequested("store"))
        book.feed(ev.RestartRequested("api"))
        book.ended("api")
        book.started("api")
        book.ready("api")
        book.ended("store")
        book.started("store")
        assert book.ready("store") == ["StopProcess api 2"], "it has seen the old one only"

    def test_a_task_is_run_again(self) -> None:
        book = Playbook(service("store"), replace(task("seed", "store"), restarts_with=("store",)))
        book.start("seed")
        book.started("store")
        book.ready("store")
        book.started("seed")
        book.ended("seed", 0)
        assert self.renew(book, "store") == ["StartProcess seed 2"]

    def test_a_task_that_is_run_again_counts_when_it_has_succeeded(self) -> None:
        book = Playbook(task("seed"), follower("api", "seed:completed"))
        book.start("api")
        book.started("seed")
        book.ended("seed", 0)
        book.started("api")
        book.ready("api")
        book.feed(ev.RestartRequested("seed"))
        book.started("seed")
        assert book.ended("seed", 1) == []
        book.feed(ev.RestartRequested("seed"))
        book.started("seed")
        assert book.ended("seed", 0) == ["StopProcess api 1"]

    def test_not_while_all_is_being_stopped(self) -> None:
        book = self.running(service("store"), follower("api", "store"))
        book.feed(ev.RestartRequested("store"))
        book.ended("store")
        book.started("store")
        book.feed(ev.ShutdownRequested())
        assert book.ready("store") == []


class TestSchedule:
    def scheduled(self, **fields: object) -> Playbook:
        book = Playbook(task("job", schedule=Schedule(every=60 * SECOND), **fields))
        assert book.start("job") == ["SetSchedule job"]
        return book

    def due(self, book: Playbook) -> list[str]:
        return book.feed(ev.RunDue("job"))

    def test_it_waits_for_its_time(self) -> None:
        book = self.scheduled()
        assert book.state("job") is State.WAITING
        assert book.start("job") == []
        assert self.due(book) == ["StartProcess job 1"]
        book.started("job")
        book.ended("job", 0)
        assert book.state("job") is State.COMPLETED
        assert self.due(book) == ["StartProcess job 2"]
        assert [(loop.cause, loop.outcome) for loop in book.loops] == [(Cause.SCHEDULE, Outcome.OK)]

    def test_never_two_at_once(self) -> None:
        book = self.scheduled()
        self.due(book)
        book.started("job")
        assert self.due(book) == []
        assert "left out" in book.told[-1].text
        assert book.ended("job", 0) == [], "and not afterwards either"

    def test_a_failure_is_no_crash_loop(self) -> None:
        book = self.scheduled()
        for run in range(1, 5):
            assert self.due(book) == [f"StartProcess job {run}"]
            fail(book, "job")
            assert book.state("job") is State.FAILED

    def test_each_time_has_attempts_of_its_own(self) -> None:
        book = self.scheduled(restart=RestartPolicy(Restart.ON_FAILURE, limit=2))
        for run in (1, 3):
            assert self.due(book) == [f"StartProcess job {run}"]
            assert fail(book, "job") == ["SetBackoff job"]
            assert book.feed(ev.BackoffEnded("job", run)) == [f"StartProcess job {run + 1}"]
            assert fail(book, "job") == []
            assert (book.state("job"), book.reason("job")) == (State.FAILED, "exited with 1, 2 times in a row")

    def test_its_time_comes_before_the_next_attempt(self) -> None:
        book = self.scheduled(restart=RestartPolicy(Restart.ON_FAILURE))
        self.due(book)
        fail(book, "job")
        assert self.due(book) == ["ClearBackoff job", "StartProcess job 2"]
        assert book.feed(ev.BackoffEnded("job", 1)) == []

    def test_by_hand(self) -> None:
        book = self.scheduled()
        assert book.feed(ev.RestartRequested("job")) == ["StartProcess job 1"]
        book.started("job")
        book.ended("job", 0)
        assert self.due(book) == ["StartProcess job 2"]

    def test_stopped_it_has_no_time(self) -> None:
        book = self.scheduled()
        assert book.feed(ev.StopRequested(("job",))) == ["ClearSchedule job"]
        assert self.due(book) == []
        assert book.feed(ev.RestartRequested("job")) == ["SetSchedule job", "StartProcess job 1"]

    def test_its_dependencies_are_waited_for_each_time(self) -> None:
        book = Playbook(service("store"), task("job", "store", schedule=Schedule(every=SECOND)))
        assert book.start("job") == ["StartProcess store 1", "SetSchedule job"]
        assert self.due(book) == []
        assert book.reason("job") == "for store"
        book.started("store")
        assert book.ready("store") == ["StartProcess job 1"]

    def test_another_time_in_the_file(self) -> None:
        book = self.scheduled()
        spec = book.supervisor.services["job"].spec
        other = replace(spec, schedule=Schedule(cron="0 * * * *"))
        assert book.feed(ev.ProjectChanged(project(other))) == ["SetSchedule job"]
        changed = replace(other, command=Command(("x",), "x"))
        assert book.feed(ev.ProjectChanged(project(changed))) == [], "that does not run it"
        none = replace(changed, schedule=None)
        assert book.feed(ev.ProjectChanged(project(none))) == ["ClearSchedule job", "StartProcess job 1"]

    def test_shutdown(self) -> None:
        book = self.scheduled()
        assert book.feed(ev.ShutdownRequested()) == ["ClearSchedule job", "Finish"]

    def test_who_waits_for_it_does_not_wait_in_vain(self) -> None:
        book = Playbook(task("job", schedule=Schedule(every=SECOND)), service("api", "job:completed"))
        book.start("api")
        assert stuck(book, "api") == ""
        self.due(book)
        fail(book, "job")
        assert stuck(book, "api") == ""


class TestOver:
    def outcome(self, book: Playbook, *asked: str) -> int | None:
        return book.supervisor.outcome(asked or None)

    def test_tasks_that_are_done(self) -> None:
        book = Playbook(task("build"), task("test", "build:completed"))
        assert self.outcome(book) is None
        book.start("build", "test")
        book.started("build")
        book.ended("build", 0)
        assert self.outcome(book) is None
        book.started("test")
        book.ended("test", 0)
        assert self.outcome(book) == 0

    @pytest.mark.parametrize(("code", "status"), [(1, 1), (3, 3), (-9, 137)])
    def test_one_that_failed_keeps_its_code(self, code: int, status: int) -> None:
        book = Playbook(task("test", "build:completed"), task("build"), service("web", "test:completed"))
        book.start("web")
        fail(book, "build", code)
        assert self.outcome(book) is None, "web watches files, and waits: a save may mend it"
        book = Playbook(task("test", "build:completed"), task("build"), still("web", "test:completed"))
        book.start("web")
        fail(book, "build", code)
        assert self.outcome(book) == status

    def test_one_that_was_never_started(self) -> None:
        book = Playbook(task("test"))
        book.start("test")
        book.feed(ev.ProcessNotStarted("test", 1, "no such program: test"))
        assert self.outcome(book) == 1

    def test_not_while_a_service_runs_or_tries_again(self) -> None:
        book = Playbook(task("seed"), still("api", restart=RestartPolicy(limit=2)))
        book.start("seed", "api")
        book.started("seed")
        book.ended("seed", 0)
        book.started("api")
        assert self.outcome(book) is None
        book.ended("api", 4)
        assert self.outcome(book) is None
        book.feed(ev.BackoffEnded("api", book.run("api")))
        fail(book, "api", 4)
        assert self.outcome(book) == 4, "a crash loop of what watches nothing is the end"

    def test_not_while_a_save_may_start_it(self) -> None:
        book = Playbook(task("test", watch=service("x").watch))
        book.start("test")
        fail(book, "test")
        assert self.outcome(book) is None

    def test_not_with_a_schedule(self) -> None:
        book = Playbook(task("job", schedule=Schedule(every=SECOND)))
        book.start("job")
        assert self.outcome(book) is None

    def test_not_after_a_stop_by_hand(self) -> None:
        book = Playbook(still("api"))
        book.up("api")
        book.feed(ev.StopRequested(("api",)))
        book.ended("api")
        assert self.outcome(book) is None

    def test_what_is_off_by_the_file_does_not_count(self) -> None:
        book = Playbook(still("store", mode=Mode.OFF), task("seed", "store"))
        book.start("seed")
        book.started("seed")
        book.ended("seed", 0)
        assert self.outcome(book) == 0

    def test_a_task_that_was_asked_for_decides_alone(self) -> None:
        book = Playbook(service("store"), task("test", "store"))
        book.start("test")
        book.started("store")
        book.ready("store")
        assert self.outcome(book, "test") is None
        fail(book, "test", 5)
        assert self.outcome(book, "test") == 5
        assert self.outcome(book) is None

    def test_a_task_that_was_asked_for_and_waits_in_vain(self) -> None:
        book = Playbook(service("store", restart=RestartPolicy(Restart.NEVER)), task("test", "store"))
        book.start("test")
        fail(book, "store", 7)
        assert self.outcome(book, "test") == 7

    def test_a_service_that_was_asked_for_too_goes_on(self) -> None:
        book = Playbook(still("store"), task("test", "store"))
        book.start("store", "test")
        book.started("store")
        book.ready("store")
        book.started("test")
        book.ended("test", 0)
        assert self.outcome(book, "store", "test") is None

"""Services together: order, shutdown, a changed project."""

from __future__ import annotations

from dataclasses import replace

from devloop.config.model import Command, Mode
from devloop.core import events as ev
from devloop.protocol import Cause, State
from tests.unit.core.playbook import Playbook, project, service


def test_independent_services_start_side_by_side_and_dependents_wait() -> None:
    book = Playbook(service("store"), service("mail"), service("api", "store"), service("web", "api:started"))
    assert book.start("store", "mail", "api", "web") == ["StartProcess store 1", "StartProcess mail 1"]
    assert book.state("api") is State.WAITING
    assert book.reason("api") == "for store"
    assert book.started("store") == ["StartProbes store 1"]
    assert book.ready("store") == ["StartProcess api 1"]
    assert book.started("api") == ["StartProbes api 1", "StartProcess web 1"], "web waits for started only"


def test_a_task_is_waited_for_until_it_is_complete() -> None:
    book = Playbook(service("seed", task=True), service("api", "seed:completed"))
    book.start("api")
    book.started("seed")
    assert book.state("api") is State.WAITING
    assert book.ended("seed", 0) == ["StartProcess api 1"]


def test_a_failed_dependency_is_named_and_waited_for() -> None:
    book = Playbook(service("seed", task=True), service("api", "seed:completed"))
    book.start("api")
    book.started("seed")
    book.ended("seed", 1)
    assert (book.state("api"), book.reason("api")) == (State.WAITING, "for seed, which exited with 1")
    book.feed(ev.RestartRequested("seed"))
    book.started("seed")
    assert book.ended("seed", 0) == ["StartProcess api 1"]


def test_starting_one_starts_what_it_needs_and_no_more() -> None:
    book = Playbook(service("store"), service("mail"), service("api", "store"))
    assert book.start("api") == ["StartProcess store 1"]
    assert book.state("mail") is State.OFF


def test_what_is_off_is_not_waited_for() -> None:
    book = Playbook(service("store", mode=Mode.OFF), service("api", "store"))
    assert book.start("api") == ["StartProcess api 1"]


def test_what_is_off_is_started_when_it_is_asked_for_by_name() -> None:
    book = Playbook(service("store", mode=Mode.OFF), service("api", "store", mode=Mode.OFF))
    assert book.start("api") == ["StartProcess api 1"]
    assert book.state("store") is State.OFF
    assert book.start("store") == ["StartProcess store 1"]


def test_toggling_to_local_leaves_dependencies_that_are_off() -> None:
    book = Playbook(service("store", mode=Mode.OFF), service("mail"), service("api", "store", "mail", mode=Mode.OFF))
    assert book.feed(ev.ModeRequested("api", Mode.LOCAL)) == ["StartProcess mail 1"]
    book.started("mail")
    assert book.ready("mail") == ["StartProcess api 1"]


def test_a_dependency_that_restarts_does_not_stop_its_dependents() -> None:
    book = Playbook(service("store"), service("api", "store"))
    book.start("api")
    book.started("store")
    book.ready("store")
    book.started("api")
    book.ready("api")
    assert book.feed(ev.RestartRequested("store")) == ["StopProcess store 1"]
    assert book.state("api") is State.READY
    book.changed("api")
    book.settled("api")
    assert book.ended("api") == ["StartProcess api 2"], "and a reload does not wait for it"


def test_shutdown_stops_dependents_first() -> None:
    book = Playbook(service("store"), service("api", "store"), service("mail"))
    book.start("store", "api", "mail")
    for name in ("store", "mail", "api"):
        book.started(name)
        book.ready(name)
    assert book.feed(ev.ShutdownRequested()) == ["StopProcess api 1", "StopProcess mail 1"]
    assert book.ended("mail") == []
    assert book.ended("api") == ["StopProcess store 1"]
    assert book.ended("store") == ["Finish"]
    assert book.start("api") == [], "nothing starts any more"


def test_shutdown_with_nothing_running_is_done_at_once() -> None:
    assert Playbook(service("api")).feed(ev.ShutdownRequested()) == ["Finish"]


def test_shutdown_does_not_start_what_was_waiting() -> None:
    book = Playbook(service("store"), service("api", "store"))
    book.start("api")
    book.started("store")
    assert book.feed(ev.ShutdownRequested()) == ["StopProcess store 1"]
    assert book.ended("store") == ["Finish"]


def test_shutdown_during_a_backoff() -> None:
    book = Playbook(service("api"))
    book.start("api")
    book.started("api")
    book.ended("api", 1)
    assert book.feed(ev.ShutdownRequested()) == ["ClearBackoff api", "Finish"]


class TestChangedProject:
    def test_only_the_difference_is_applied(self) -> None:
        book = Playbook(service("api"), service("web"), service("old"))
        book.up("api", "web", "old")
        changed = replace(service("api"), command=Command(("api2",), "api2"))
        commands = book.feed(ev.ProjectChanged(project(changed, service("web"), service("new"))))
        assert commands == ["StopProcess old 1", "StopProcess api 1", "StartProcess new 1"]
        assert book.ended("old") == ["Forget old"]
        assert book.ended("api") == ["StartProcess api 2"]
        book.started("api")
        book.ready("api")
        assert book.loops[-1].cause is Cause.CONFIG
        assert list(book.supervisor.services) == ["api", "web", "new"]

    def test_what_the_process_does_not_see_restarts_nothing(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        assert book.feed(ev.ProjectChanged(project(service("api", ignore=("x",))))) == []
        assert book.supervisor.services["api"].spec.ignore == ("x",)

    def test_a_stopped_service_stays_stopped(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        book.feed(ev.StopRequested(("api",)))
        book.ended("api")
        changed = service("api", command=Command(("api2",), "api2"))
        assert book.feed(ev.ProjectChanged(project(changed))) == []

    def test_new_services_wait_if_only_some_were_chosen(self) -> None:
        book = Playbook(service("api"), service("web"))
        book.up("api")
        assert book.feed(ev.ProjectChanged(project(service("api"), service("web"), service("new")))) == []

    def test_one_that_comes_back_while_it_ends_goes_on(self) -> None:
        book = Playbook(service("api"), service("web"))
        book.up("api", "web")
        assert book.feed(ev.ProjectChanged(project(service("web")))) == ["StopProcess api 1"]
        book.feed(ev.ProjectChanged(project(service("api"), service("web"))))
        assert book.ended("api") == ["StartProcess api 2"]

    def test_a_changed_mode_is_followed(self) -> None:
        book = Playbook(service("api"))
        book.up("api")
        assert book.feed(ev.ProjectChanged(project(service("api", mode=Mode.OFF)))) == ["StopProcess api 1"]
        book.ended("api")
        assert book.state("api") is State.OFF

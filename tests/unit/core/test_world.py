"""A service whose project has a remote: its process waits for what it has of its workload."""

from __future__ import annotations

from dataclasses import replace

from devloop.config.model import Command, Mode, Place, Remote, RemoteKind
from devloop.core import events as ev
from devloop.protocol import Outcome, State
from tests.unit.core.playbook import Playbook, project, service

REMOTE = Remote(RemoteKind.KUBERNETES)


def opened(name: str) -> ev.WorldOpened:
    return ev.WorldOpened(name)


def test_the_process_waits_for_its_world_which_is_opened_side_by_side_with_its_dependencies() -> None:
    book = Playbook(service("store"), service("api", "store"), remote=REMOTE)
    assert book.start("api") == ["OpenWorld store", "OpenWorld api"]
    assert book.feed(opened("api")) == []
    assert book.reason("store") == "for what it has of the remote"
    assert book.feed(opened("store")) == ["StartProcess store 1"]
    book.started("store")
    assert book.ready("store") == ["StartProcess api 1"]


def test_without_a_remote_there_is_nothing_to_wait_for() -> None:
    assert Playbook(service("api")).start("api") == ["StartProcess api 1"]


def test_a_reload_does_not_open_it_again() -> None:
    book = Playbook(service("api"), remote=REMOTE)
    book.start("api")
    book.feed(opened("api"))
    book.started("api")
    book.ready("api")
    assert book.changed("api") == ["StopProcess api 1"]
    book.settled("api")
    assert book.ended("api") == ["StartProcess api 2"]


def test_what_is_left_to_the_remote_opens_nothing_until_it_comes_here() -> None:
    book = Playbook(service("api", mode=Mode.REMOTE), remote=REMOTE)
    assert book.start("api") == []
    assert book.state("api") is State.REMOTE
    assert book.feed(ev.ModeRequested("api", Mode.LOCAL)) == ["OpenWorld api"]
    assert book.feed(opened("api")) == ["StartProcess api 1"]
    book.started("api")
    book.ready("api")
    assert book.feed(ev.ModeRequested("api", Mode.REMOTE)) == ["StopProcess api 1"]
    book.ended("api")
    assert book.state("api") is State.REMOTE
    assert book.feed(ev.ModeRequested("api", Mode.LOCAL)) == ["StartProcess api 2"], "its world is still there"


def test_a_world_that_cannot_be_had_fails_the_start_and_a_restart_tries_again() -> None:
    book = Playbook(service("api"), remote=REMOTE)
    book.start("api")
    assert book.feed(ev.WorldFailed("api", "secret db is missing", "make it")) == []
    assert (book.state("api"), book.reason("api")) == (State.FAILED, "secret db is missing")
    assert (book.told[-1].text, book.told[-1].hint) == ("secret db is missing", "make it")
    assert book.loops[-1].outcome is Outcome.FAILED
    assert book.feed(ev.RestartRequested("api")) == ["OpenWorld api"]
    assert book.feed(opened("api")) == ["StartProcess api 1"]


def test_a_stop_while_it_opens_starts_nothing_later() -> None:
    book = Playbook(service("api"), remote=REMOTE)
    book.start("api")
    book.feed(ev.StopRequested(("api",)))
    assert book.state("api") is State.STOPPED
    assert book.feed(opened("api")) == []
    assert book.start("api") == ["StartProcess api 1"]


def test_another_environment_is_told_and_had_at_the_next_start() -> None:
    book = Playbook(service("api"), remote=REMOTE)
    book.start("api")
    book.feed(opened("api"))
    book.started("api")
    book.ready("api")
    assert book.feed(ev.WorldChanged("api", "ConfigMap shop has changed")) == []
    assert book.supervisor.services["api"].stale
    assert book.told[-1].text == "ConfigMap shop has changed"
    assert book.changed("api") == ["OpenWorld api", "StopProcess api 1"]
    book.settled("api")
    assert book.ended("api") == []
    assert book.feed(opened("api")) == ["StartProcess api 2"]


def test_another_workload_in_devloop_toml_is_another_world() -> None:
    api = service("api")
    book = Playbook(api, remote=REMOTE)
    book.start("api")
    book.feed(opened("api"))
    book.started("api")
    book.ready("api")
    changed = project(replace(api, place=Place("deployment/api-v2")), remote=REMOTE)
    assert book.feed(ev.ProjectChanged(changed)) == ["OpenWorld api"]
    assert book.feed(opened("api")) == ["StopProcess api 1"], "the old one goes on until there is something to run in"
    assert book.ended("api") == ["StartProcess api 2"]


def test_a_build_waits_for_it_too() -> None:
    book = Playbook(service("api", build=Command(("make",), "make")), remote=REMOTE)
    assert book.start("api") == ["OpenWorld api"]
    assert book.feed(opened("api")) == ["StartBuild api 1"]

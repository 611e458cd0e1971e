"""A service that waits at a debugger's prompt: what it is spared while a person has it."""

from __future__ import annotations

import pytest

from devloop.config.model import Restart, RestartPolicy
from devloop.core import events as ev
from devloop.protocol import Outcome, State
from tests.unit.core.playbook import Playbook, service


def at_a_prompt(**fields: object) -> Playbook:
    book = Playbook(service("api", **fields))
    book.start("api")
    book.started("api")
    assert book.feed(ev.PromptShown("api", 1, "(Pdb)")) == ["HoldProbes api"]
    return book


def prompt(book: Playbook) -> str:
    return book.supervisor.services["api"].prompt


def test_it_keeps_its_state_and_its_loop_is_not_timed() -> None:
    book = at_a_prompt()
    assert (book.state("api"), prompt(book)) == (State.STARTING, "(Pdb)")
    assert book.outcomes() == [("api", Outcome.SUPERSEDED)]
    book.tick(60_000)
    assert book.ready("api") == []
    assert (book.state("api"), prompt(book)) == (State.READY, "(Pdb)")
    assert len(book.loops) == 1, "how long a person took is no loop"
    assert book.feed(ev.PromptGone("api", 1)) == ["ReleaseProbes api"]
    assert (book.state("api"), prompt(book)) == (State.READY, "")


def test_it_is_neither_late_nor_dead() -> None:
    book = at_a_prompt()
    assert book.feed(ev.NotReadyInTime("api", 1, "nothing listens")) == []
    assert book.reason("api") == ""
    assert book.feed(ev.NotAlive("api", 1, "no answer")) == ["StartProbes api 1"]
    assert book.state("api") is State.STARTING
    book.feed(ev.PromptGone("api", 1))
    assert book.feed(ev.NotAlive("api", 1, "no answer")) == ["StopProcess api 1"]


def test_a_save_ends_it_as_any_other() -> None:
    book = at_a_prompt()
    assert book.changed("api") == ["ReleaseProbes api", "StopProcess api 1"]
    assert prompt(book) == ""
    book.settled("api")
    assert book.ended("api") == ["StartProcess api 2"]
    assert book.feed(ev.PromptShown("api", 1, "(Pdb)")) == [], "the old process's prompt is none"


@pytest.mark.parametrize("policy", [Restart.NEVER, Restart.ON_FAILURE])
def test_one_that_is_quit_has_ended(policy: Restart) -> None:
    book = at_a_prompt(restart=RestartPolicy(policy))
    assert "ReleaseProbes api" in book.ended("api", 1)
    assert prompt(book) == ""
    assert book.state("api") is (State.FAILED if policy is Restart.NEVER else State.BACKOFF)


def test_another_prompt_replaces_the_first() -> None:
    book = at_a_prompt()
    assert book.feed(ev.PromptShown("api", 1, "((Pdb))")) == []
    assert prompt(book) == "((Pdb))"

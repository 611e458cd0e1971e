"""What `devloop terminal` makes of the engine's events."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from devloop.commands.terminal import Attached
from devloop.control.client import ControlClient, Event
from devloop.protocol import ServiceStatus, Snapshot, State


class Client(ControlClient):
    """Has these events, and answers nothing."""

    def __init__(self, *events: Event) -> None:
        self.found = events

    async def events(self) -> AsyncIterator[Event]:
        """See ControlClient."""
        for event in self.found:
            yield event


def status(state: State) -> ServiceStatus:
    return ServiceStatus("api", "local", state, "exited with 1", 0)


@pytest.mark.parametrize(("state", "code"), [(State.FAILED, 1), (State.STOPPED, 0)])
async def test_a_snapshot_tells_the_end_too(state: State, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes the place of a status that was not sent yet, when devloop.toml has changed meanwhile."""
    client = Client(Snapshot("shop", "/shop", "/shop/devloop.toml", 1, "0", 1, (status(state),)))
    attached = Attached(client, "api")
    attached._status = status(State.READY)
    assert await attached._watch(client.events()) == code
    assert f"api is {state}" in capsys.readouterr().err

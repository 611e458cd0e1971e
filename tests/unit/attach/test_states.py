"""What an attachment says of itself, by what its local service takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from devloop.agent.spec import Fail, Spec
from devloop.attach.attachment import Attachment
from devloop.attach.attachments import Attachments
from devloop.attach.seam import Phase, Wanted

from .fake_api import FakeApi

WHY = "nothing listens on port 8080; it listens on 9090"


class Told:
    """A session, and what it was told."""

    def __init__(self) -> None:
        self.said: list[tuple[bool, tuple[int, ...]]] = []

    async def tell(self, _: Spec, up: bool, deaf: tuple[int, ...]) -> None:
        self.said.append((up, deaf))


def attachment(fail: Fail = "open") -> tuple[Attachment, Any]:
    local = SimpleNamespace(running=True, deaf={})
    spec = Spec("one", "ada", "h", "intercept", "now", "api", {80: 8080, 81: 8081}, fail=fail)
    return Attachment(spec, Wanted("intercept", "api"), cast(Any, local), lambda _: None), local


async def test_it_says_no_more_than_is_true_of_each_port() -> None:
    work = Attachments(cast(Any, None), cast(Any, FakeApi()), user="ada", host="h")
    found, local = attachment()
    session = Told()

    async def stands() -> Any:
        await work._told(found, cast(Any, session))
        work._stands(found)
        return found.state

    assert (await stands()).phase is Phase.ATTACHED
    local.deaf = {8080: WHY}
    state = await stands()
    assert state.phase is Phase.ATTACHED
    assert state.notes == (f"port 80 is answered by the original: {WHY}",)
    local.deaf = {8080: WHY, 8081: "nothing listens on port 8081"}
    state = await stands()
    assert (state.phase, state.notes) == (Phase.OPEN, ())
    assert state.reason == f"{WHY}; nothing listens on port 8081; the original answers"
    local.deaf = {}
    assert await stands() == found.state and found.state.phase is Phase.ATTACHED and not found.state.notes
    assert session.said == [(True, ()), (True, (80,)), (True, (80, 81)), (True, ())]


async def test_one_that_fails_closed_does_not_say_that_the_original_answers() -> None:
    work = Attachments(cast(Any, None), cast(Any, FakeApi()), user="ada", host="h")
    found, local = attachment("closed")
    local.deaf = {8080: WHY, 8081: WHY}
    work._stands(found)
    assert found.state.reason == WHY

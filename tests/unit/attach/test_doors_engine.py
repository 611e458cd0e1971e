"""The engine's part: a door for every pod, and after a refusal in none."""

from __future__ import annotations

from typing import Any

import pytest

from devloop.agent.objects import AGENT_SELECTOR, swapped
from devloop.agent.spec import Spec
from devloop.attach.attachment import Attachment
from devloop.attach.claims import Claims, GoneError
from devloop.attach.doors import DOORS, Doors
from devloop.attach.seam import AttachError, Wanted
from devloop.remote.kubernetes.api import ApiError

from .fake_api import service
from .fake_pods import FakePods, pod


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.attach.doors.LOOK_SECONDS", (0.0, 0.0))


def web(**more: Any) -> dict[str, Any]:
    return service("web", clusterIP="None", ports=[{"name": "http", "port": 80, "targetPort": "http"}], **more)


def attachment() -> Attachment:
    spec = Spec("web-ada", "ada", "h", "intercept", "now", "web", {80: 1}, way="pods")
    return Attachment(spec, Wanted("intercept", "web"), None, lambda _: None)  # type: ignore[arg-type]


def doors(api: FakePods) -> Doors:
    return Doors(api, Claims(api), list)  # type: ignore[arg-type]


async def test_each_pod_gets_a_door_of_the_agents_image_and_no_second_one() -> None:
    api, found = FakePods(web(), "web-0", "web-1"), attachment()
    work = doors(api)
    await work.ready(found, api)  # type: ignore[arg-type]
    assert api.doors() == {"web-0": 1, "web-1": 1}
    (made,) = api.pods["web-0"]["spec"]["ephemeralContainers"]
    assert made["image"] == "agent:7"
    assert "web-0, web-1" in found.notes[0] and "until the pod is replaced" in found.notes[0] and not found.unmet
    await work.look(found, api)  # type: ignore[arg-type]
    assert api.doors() == {"web-0": 1, "web-1": 1}


async def test_a_refusal_leaves_no_door_in_any_pod() -> None:
    api, found = FakePods(web(), "web-0", "web-1"), attachment()
    problem = ApiError(403, "Forbidden", "violates PodSecurity", where="x")
    api.refuses = lambda name: problem if name == "web-1" else None
    with pytest.raises(AttachError, match="allows no NET_ADMIN"):
        await doors(api).ready(found, api)  # type: ignore[arg-type]
    assert api.doors() == {"web-0": 0, "web-1": 0}


async def test_the_pods_are_the_owners_while_somebody_holds_the_service_at_its_address() -> None:
    """The Service selects the agent's pod then, and leads to the agent's ports."""
    api, found = FakePods(swapped(web(), {80: 20000}, {}), "web-0", "web-1"), attachment()
    assert api.service is not None and api.service["spec"]["selector"] == AGENT_SELECTOR
    work = Doors(api, Claims(api), lambda: [found])  # type: ignore[arg-type]
    await work.ready(found, api)  # type: ignore[arg-type]
    assert api.doors() == {"web-0": 1, "web-1": 1}
    assert [each["ports"] for each in api.asked[-1]] == [{"80": 8080}] * 2
    found.dirty.clear()
    work._seen(pod("web-2"))
    assert found.dirty.is_set()


async def test_without_a_pod_or_a_service_there_is_nothing_to_take() -> None:
    api, found = FakePods(web()), attachment()
    with pytest.raises(AttachError, match="no running pod"):
        await doors(api).ready(found, api)  # type: ignore[arg-type]
    api.service = None
    with pytest.raises(GoneError):
        await doors(api).ready(found, api)  # type: ignore[arg-type]


async def test_a_door_that_can_not_work_says_why() -> None:
    api, found = FakePods(web(), "web-0"), attachment()
    api.dies = "devloop door: nftables in the pod's network: Operation not supported"
    with pytest.raises(AttachError, match=r"again and again.*Operation not supported"):
        await doors(api).ready(found, api)  # type: ignore[arg-type]
    assert api.doors() == {"web-0": DOORS}


async def test_a_new_pod_and_one_whose_door_has_died_get_another() -> None:
    api, found = FakePods(web(), "web-0"), attachment()
    work = doors(api)
    await work.ready(found, api)  # type: ignore[arg-type]
    api.pods["web-1"] = pod("web-1")
    api.kill("web-0")
    await work.look(found, api)  # type: ignore[arg-type]
    assert api.doors() == {"web-0": 2, "web-1": 1}
    assert found.unmet  # until they are there, the original answers
    await work.look(found, api)  # type: ignore[arg-type]
    assert not found.unmet and "web-0, web-1" in found.notes[0]


async def test_what_fails_later_is_noted_and_the_other_pods_are_kept() -> None:
    api, found = FakePods(web(), "web-0"), attachment()
    work = doors(api)
    await work.ready(found, api)  # type: ignore[arg-type]
    api.pods["web-1"] = pod("web-1")
    api.refuses = lambda name: ApiError(403, "Forbidden", "cannot patch", where="x")
    await work.look(found, api)  # type: ignore[arg-type]
    assert not found.unmet
    assert any("web-1 answers by itself" in each for each in found.notes)


async def test_what_was_attached_once_is_not_given_up_while_its_pods_are_away() -> None:
    api, found = FakePods(web(), "web-0"), attachment()
    work = doors(api)
    await work.ready(found, api)  # type: ignore[arg-type]
    api.pods = {"web-0": pod("web-0", hostNetwork=True)}
    await work.look(found, api)  # type: ignore[arg-type]
    assert "hostNetwork" in found.unmet
    api.pods.clear()
    await work.look(found, api)  # type: ignore[arg-type]
    assert found.unmet.startswith("no pod of it has a door")
    api.pods["web-0"] = pod("web-0")
    api.pods["web-0"]["metadata"]["uid"] = "another"
    await work.look(found, api)  # type: ignore[arg-type]
    await work.look(found, api)  # type: ignore[arg-type]
    assert not found.unmet and api.doors() == {"web-0": 1}

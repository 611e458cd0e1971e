"""Others at work on what is attached: noticed, shown, and handled without a fight."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import AttachError, HeldError, Match, Phase, Route, personal

from . import kit
from .attaching import PORT, SERVICE, Here, ask, client_pod, engine, objects_of, run_service
from .conftest import Namespace
from .kit import ApiClient, client

pytestmark = pytest.mark.role("attach")

MANAGER = "gitops"


async def patch(admin: ApiClient, namespace: str, body: dict[str, Any]) -> None:
    core = client.CoreV1Api(admin)
    await core.patch_namespaced_service(
        SERVICE, namespace, body, field_manager=MANAGER, _content_type="application/merge-patch+json"
    )


ORIGINAL = {"spec": {"selector": {"app": SERVICE, "devloop.dev/agent": None}}}


async def test_a_controller_that_reverts_the_selector_gets_its_way_in_the_end(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    before = await objects_of(admin, namespace.name)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        found = await ada.attachments.attach(ada.wanted(here), here)

        async def phase() -> Phase:
            return found.state.phase

        await patch(admin, namespace.name, ORIGINAL)
        await kit.eventually(phase, Phase.OPEN, 5)
        assert MANAGER in found.state.reason
        # Once is no fight: it is attached again.
        await kit.eventually(phase, Phase.ATTACHED, 10)
        await kit.eventually(lambda: ask(namespace), "here", 5)
        for times in (2, 3, 4):
            await patch(admin, namespace.name, ORIGINAL)

            async def noticed() -> bool:
                return len(found.reverts) >= times  # noqa: B023

            async def settled() -> bool:
                return found.state.phase in (Phase.ATTACHED, Phase.CONTESTED)

            await kit.eventually(noticed, True, 10)
            await kit.eventually(settled, True, 20)
        await kit.eventually(phase, Phase.CONTESTED, 20)
        assert MANAGER in found.state.reason and "given way" in found.state.reason
        assert ada.attachments.held == ()
        await kit.eventually(lambda: objects_of(admin, namespace.name), before, 10)
        assert (await ask(namespace)).startswith("api-")


async def test_an_edit_meanwhile_is_kept_and_works(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        found = await ada.attachments.attach(ada.wanted(here), here)
        # What `kubectl apply` does with its old manifest and a new label: it merges its selector into ours.
        await patch(
            admin, namespace.name, {"metadata": {"labels": {"team": "b"}}, "spec": {"selector": {"app": SERVICE}}}
        )
        await kit.eventually(lambda: ask(namespace), "here", 15)

        async def phase() -> Phase:
            return found.state.phase

        await kit.eventually(phase, Phase.ATTACHED, 10)
        await ada.attachments.leave(found)
        service = await client.CoreV1Api(admin).read_namespaced_service(SERVICE, namespace.name)
        assert service.spec.selector == {"app": SERVICE}
        assert service.metadata.labels == {"team": "b"}


async def test_a_deleted_service_is_given_up_and_one_that_is_made_anew_is_not(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    core = client.CoreV1Api(admin)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        found = await ada.attachments.attach(ada.wanted(here), here)

        async def phase() -> Phase:
            return found.state.phase

        old = await core.read_namespaced_service(SERVICE, namespace.name)
        await core.delete_namespaced_service(SERVICE, namespace.name)
        ports = [client.V1ServicePort(name="http", port=PORT, target_port="http", app_protocol="http")]
        new = client.V1Service(
            metadata=client.V1ObjectMeta(name=SERVICE),
            spec=client.V1ServiceSpec(selector={"app": SERVICE}, ports=ports, cluster_ip=old.spec.cluster_ip),
        )
        await core.create_namespaced_service(namespace.name, new)
        await kit.eventually(lambda: ask(namespace), "here", 20)
        await kit.eventually(phase, Phase.ATTACHED, 10)
        await core.delete_namespaced_service(SERVICE, namespace.name)
        await kit.eventually(phase, Phase.CONTESTED, 30)
        assert "deleted" in found.state.reason or "no Service" in found.state.reason

        async def held() -> list[str]:
            return [key for key in await objects_of(admin, namespace.name) if key.startswith("lease/")]

        await kit.eventually(held, [], 10)


async def test_a_rollout_and_an_autoscaler_go_on_below(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    """New pods take what no route takes, without a failed request."""
    from .attaching import Load

    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    apps = client.AppsV1Api(admin)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),)), here)
        load = Load(namespace, rate=100, connections=4)
        body = {"spec": {"replicas": 3, "template": {"metadata": {"annotations": {"rolled": "out"}}}}}
        await apps.patch_namespaced_deployment(SERVICE, namespace.name, body)

        def rolled(each: Any) -> bool:
            status = each.status
            done = status.updated_replicas == 3 and status.available_replicas == 3 and status.replicas == 3
            return done and status.observed_generation == each.metadata.generation

        await kit.until(
            apps.list_namespaced_deployment, namespace.name, ready=rolled, field_selector=f"metadata.name={SERVICE}"
        )
        await asyncio.sleep(2)
        result = await load.stop()
        assert result["failed"] == 0, str(result)
        assert len(result["counts"]) >= 5, str(result)  # the two old pods and the three new ones
        await kit.eventually(lambda: ask(namespace, "-H", "baggage: devloop=ada"), "here", 10)


async def test_what_is_held_is_refused_with_who_and_since_when_until_it_is_taken_over(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    before = await objects_of(admin, namespace.name)
    async with (
        engine(namespace.other_developer, tmp_path, "ben") as ben,
        Here("ben") as there,
    ):
        async with engine(namespace.developer, tmp_path, "ada", lease_seconds=2) as ada, Here("ada") as here:
            await ada.attachments.attach(ada.wanted(here), here)
            with pytest.raises(HeldError) as problem:
                await ben.attachments.attach(ben.wanted(there), there)
            assert "ada@laptop holds all requests of api (intercept) since 20" in str(problem.value)
            assert not problem.value.dead
            with pytest.raises(HeldError):
                await ben.attachments.take_over(ben.wanted(there))
            # A personal route is a part of all.
            with pytest.raises(HeldError):
                await ben.attachments.attach(ben.wanted(there, routes=(personal("ben"),)), there)
            await kit.eventually(lambda: ask(namespace), "ada", 10)
            [holding] = await ben.attachments.holdings()
            assert (holding.spec.user, holding.mine) == ("ada", False)
            ada.crash()
        # Dead: whoever asks for it takes it over, or finds that the agent has put it back.
        await kit.eventually(lambda: over(ben), True, 10)
        await ben.attachments.take_over(ben.wanted(there))
        found = await ben.attachments.attach(ben.wanted(there), there)
        await kit.eventually(lambda: ask(namespace), "ben", 10)
        await ben.attachments.leave(found)
        assert await objects_of(admin, namespace.name) == before


async def over(engine: Any) -> bool:
    return all(each.over > 0 for each in await engine.attachments.holdings())


async def test_what_cannot_be_attached_is_refused_with_the_reason(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await run_service(admin, namespace.name)
    core = client.CoreV1Api(admin)
    ports = [client.V1ServicePort(name="http", port=PORT)]
    spec = client.V1ServiceSpec(cluster_ip="None", selector={"app": SERVICE}, ports=ports)
    await core.create_namespaced_service(
        namespace.name, client.V1Service(metadata=client.V1ObjectMeta(name="headless"), spec=spec)
    )
    before = await objects_of(admin, namespace.name)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        for more, words in (
            ({"service": "headless"}, "headless"),
            ({"service": "nobody"}, "no such Service"),
            ({"ports": {99: 1}}, "it has no port 99; it has 8080, http, 8081, tcp-echo"),
            ({"ports": {"tcp-echo": 1}, "routes": (personal("ada"),)}, "neither headers nor paths"),
            ({"ports": {"tcp-echo": 1}, "kind": "wiretap"}, "can't be copied"),
            # Python knows it, and Envoy (RE2) does not: its own words.
            ({"routes": (Route(path=Match("regex", "/(?=x)")),)}, "perl operator"),
        ):
            with pytest.raises(AttachError, match=words):
                await ada.attachments.attach(ada.wanted(here, **more), here)
            assert await objects_of(admin, namespace.name) == before

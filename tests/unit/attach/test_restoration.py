"""What is written into a cluster is taken back in full, whoever does it and wherever the last one has stopped."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from devloop.agent import objects
from devloop.agent.expiry import Expiry
from devloop.agent.spec import ALL, Header, Match, Route, Spec
from devloop.attach.claims import Claims
from devloop.attach.seam import AttachError, HeldError

from .fake_api import CrashError, FakeApi, service

LISTENERS = {80: 20000, 81: 20001}


def spec(user: str = "ada", **more: Any) -> Spec:
    fields: dict[str, Any] = {"service": "api", "ports": {80: 3000}, "since": "2026-11-21T11:00:00Z", **more}
    return Spec(f"api-{user}", user, "laptop", fields.pop("kind", "intercept"), **fields)


def route(user: str) -> dict[str, Any]:
    return {"routes": (Route((Header("x-user", Match("exact", user)),)),)}


async def attach(api: FakeApi, wanted: Spec, replicas: int | None = None) -> None:
    """The API calls of `Attachments._ensure`, in its order."""
    claims = Claims(api)  # type: ignore[arg-type]
    await claims.check(wanted, await claims.leases())
    await claims.acquire(wanted, replicas=replicas)
    if wanted.service:
        found = await claims.service(wanted.service)
        assert found is not None
        if wanted.way == "pods":
            await claims.mark(wanted, "key", found)
        else:
            await claims.shadow(found)
            await claims.lead(wanted, LISTENERS)
    if wanted.kind == "replace":
        await claims.mark(wanted, "key", replicas=replicas)
        await claims.resize(wanted.workload, 0)


def lease_of(wanted: Spec) -> str:
    return objects.lease_name(wanted)


REPLACE = {"kind": "replace", "workload": "deployment/worker"}


@pytest.mark.parametrize("kind", ["intercept", "replace", "pods"])
async def test_a_crash_between_any_two_calls_is_mended_by_the_next_party(kind: str) -> None:
    wanted = spec(**{"replace": REPLACE, "pods": {"way": "pods"}}.get(kind, {}))
    whole = FakeApi(service(), service("web"), workloads={"deployments/worker": 3})
    before = whole.plain()
    await attach(whole, wanted, 3)
    assert len(whole.calls) == {"intercept": 3, "replace": 5, "pods": 2}[kind]
    assert whole.plain() != before
    # A crash of the one who attaches after `made` calls, then of the one who mends after `mended`, then a third.
    for made in range(len(whole.calls) + 1):
        for mended in range(7):
            api = FakeApi(service(), service("web"), workloads={"deployments/worker": 3})
            api.crash_after = made
            with contextlib.suppress(CrashError):
                await attach(api, wanted, 3)
            api.crash_after = made + mended
            with contextlib.suppress(CrashError):
                await Claims(api).restore({lease_of(wanted)})  # type: ignore[arg-type]
            api.crash_after = None
            await Claims(api).restore({lease_of(wanted)})  # type: ignore[arg-type]
            assert api.plain() == before, (made, mended)


async def test_nothing_is_written_before_the_lease_and_the_lease_goes_last() -> None:
    api = FakeApi(service())
    await attach(api, spec())
    assert api.calls == [
        "POST leases",
        "POST services",
        "PUT services/api",
    ]
    api.calls.clear()
    await Claims(api).restore({lease_of(spec())})  # type: ignore[arg-type]
    assert api.calls == ["PUT services/api", "DELETE services/api-devloop", "DELETE leases/devloop-api-ada"]


async def test_who_is_not_the_last_leaves_the_service_to_the_others() -> None:
    api = FakeApi(service())
    before = api.plain()
    ada, ben = spec("ada", **route("ada")), spec("ben", **route("ben"))
    await attach(api, ada)
    await attach(api, ben)
    await Claims(api).restore({lease_of(ada)})  # type: ignore[arg-type]
    left = api.objects["/api/v1/namespaces/space/services/api"]
    assert objects.is_whole(left, ben.id) and not objects.is_whole(left, ada.id)
    await Claims(api).restore({lease_of(ben)})  # type: ignore[arg-type]
    assert api.plain() == before


async def test_who_comes_while_the_last_one_leaves_is_not_left_with_nothing() -> None:
    """Between the leaver's look and its write the other has written: a conflict, and all is looked at anew."""
    api = FakeApi(service())
    ada, ben = spec("ada", **route("ada")), spec("ben", **route("ben"))
    await attach(api, ada)
    came = False

    def just_before(method: str, path: str) -> None:
        nonlocal came
        if method == "PUT" and path.endswith("services/api") and not came:
            came = True
            other = Claims(api)  # type: ignore[arg-type]
            for step in (other.acquire(ben), other.lead(ben, LISTENERS)):
                with contextlib.suppress(StopIteration):
                    step.send(None)

    api.before = just_before
    await Claims(api).restore({lease_of(ada)})  # type: ignore[arg-type]
    assert came
    left = api.objects["/api/v1/namespaces/space/services/api"]
    assert objects.is_whole(left, ben.id) and not objects.is_whole(left, ada.id)
    assert "/api/v1/namespaces/space/services/api-devloop" in api.objects


async def test_of_two_who_want_the_same_one_gets_it() -> None:
    api = FakeApi(service())
    ada, ben = spec("ada"), spec("ben")
    claims = Claims(api)  # type: ignore[arg-type]
    await attach(api, ada)
    with pytest.raises(HeldError) as problem:
        await attach(api, ben)
    assert "ada@laptop holds all requests of api (intercept) since 2026-11-21T11:00:00Z" in str(problem.value)
    assert not problem.value.dead
    # Both have looked, and then both write: the Service decides.
    await claims.acquire(ben)
    with pytest.raises(HeldError):
        await claims.lead(ben, LISTENERS)


async def test_what_others_change_meanwhile_stays() -> None:
    api = FakeApi(service())
    await attach(api, spec())
    path = "/api/v1/namespaces/space/services/api"
    edited = api.objects[path]
    edited["metadata"]["labels"]["team"] = "b"
    edited["spec"]["ports"].append({"name": "new", "port": 82, "targetPort": 8082, "protocol": "TCP"})
    edited["spec"]["selector"]["app"] = "api-v2"  # a merge into ours: it matches nothing now
    assert objects.is_broken(edited) and not objects.is_whole(edited, spec().id)
    await Claims(api).restore({lease_of(spec())})  # type: ignore[arg-type]
    now = api.objects[path]
    assert now["spec"]["selector"] == {"app": "api-v2"}
    assert [each["targetPort"] for each in now["spec"]["ports"]] == ["web", 8081, 8082]
    assert now["metadata"]["labels"] == {"team": "b"} and now["metadata"]["annotations"] == {"owner": "shop"}


def kubectl_apply(live: dict[str, Any], manifest: dict[str, Any]) -> None:
    """What `kubectl apply` does to a selector and to its own annotation: keys that it has applied before and does not
    any more go, keys that it applies are written, all others stay (kubectl's three-way merge)."""
    last = json.loads(live["metadata"]["annotations"].get(objects.LAST_APPLIED, '{"spec": {"selector": {}}}'))
    for key in last["spec"]["selector"].keys() - manifest["spec"]["selector"].keys():
        live["spec"]["selector"].pop(key, None)
    live["spec"]["selector"].update(manifest["spec"]["selector"])
    for port, applied in zip(live["spec"]["ports"], manifest["spec"]["ports"], strict=True):
        port.update(applied)
    text = json.dumps(manifest, separators=(",", ":"), sort_keys=True) + "\n"
    live["metadata"]["annotations"][objects.LAST_APPLIED] = text


async def test_an_apply_of_the_original_leads_the_service_to_its_pods_at_once() -> None:
    manifest = service()
    first = service()
    kubectl_apply(first, manifest)
    api = FakeApi(first)
    before = api.plain()
    await attach(api, spec())
    live = api.objects["/api/v1/namespaces/space/services/api"]
    assert objects.is_swapped(live)
    kubectl_apply(live, manifest)
    assert live["spec"]["selector"] == manifest["spec"]["selector"] and not objects.is_broken(live)
    assert not objects.is_whole(live, spec().id)  # so the engine leads it here again
    await Claims(api).lead(spec(), LISTENERS)  # type: ignore[arg-type]
    assert objects.is_whole(api.objects["/api/v1/namespaces/space/services/api"], spec().id)
    await Claims(api).restore({lease_of(spec())})  # type: ignore[arg-type]
    assert api.plain() == before  # the annotation too, to the byte


@pytest.mark.parametrize(
    "text",
    [
        '{"kind":"Service","spec":{"ports":[{"port":80}],"selector":{"app":"api","tier":"b"}}}\n',
        '{"metadata":{"annotations":{"note":"\\"selector\\":{\\"a\\":1}"}},"spec":{"selector":{"app":"\\u003capi"}}}',
        '{"spec": {"selector": {"app": "api"}}}',
        '{"spec":{"selector":{}}}',
        '{"spec":{"ports":[]}}',
        "not JSON",
    ],
)
def test_what_kubectl_has_noted_is_put_back_to_the_byte(text: str) -> None:
    original = service()
    original["metadata"]["annotations"][objects.LAST_APPLIED] = text
    led = objects.swapped(original, LISTENERS, {})
    assert objects.owners(led) == original
    again = objects.swapped(led, LISTENERS, {})  # of another holder, who comes later
    assert again == led
    if text.endswith("\n") or "note" in text:
        said = json.loads(led["metadata"]["annotations"][objects.LAST_APPLIED])
        expected = json.loads(text)
        expected["spec"]["selector"][objects.AGENT_KEY] = "true"
        assert said == expected


async def test_a_service_that_has_lost_its_record_is_put_back_from_the_lease() -> None:
    api = FakeApi(service())
    before = api.plain()
    kept = objects.record(objects.swapped(service(), {80: -80, 81: -81}, {}))
    await Claims(api).acquire(spec(), kept=kept)  # type: ignore[arg-type]
    await attach(api, spec())
    del api.objects["/api/v1/namespaces/space/services/api"]["metadata"]["annotations"][objects.RECORD]
    await Claims(api).restore({lease_of(spec())})  # type: ignore[arg-type]
    assert api.plain() == before


async def test_a_size_that_somebody_has_set_meanwhile_stays() -> None:
    api = FakeApi(workloads={"deployments/worker": 3})
    wanted = spec(service="", ports={}, **REPLACE)
    await attach(api, wanted, 3)
    assert api.sizes == {"deployments/worker": 0}
    api.sizes["deployments/worker"] = 5
    await Claims(api).restore({lease_of(wanted)})  # type: ignore[arg-type]
    assert api.sizes == {"deployments/worker": 5} and not api.objects


async def test_a_service_keeps_its_local_policy_over_an_attachment() -> None:
    api = FakeApi(service(internalTrafficPolicy="Local"))
    before = api.plain()
    await attach(api, spec())
    assert api.objects["/api/v1/namespaces/space/services/api"]["spec"]["internalTrafficPolicy"] == "Cluster"
    await Claims(api).restore({lease_of(spec())})  # type: ignore[arg-type]
    assert api.plain() == before


async def test_a_lease_that_was_renewed_meanwhile_is_not_deleted() -> None:
    api = FakeApi(service())
    await attach(api, spec())
    claims = Claims(api)  # type: ignore[arg-type]
    stale = await claims.snapshot()
    assert await claims.renew(spec())
    api.objects.pop("/api/v1/namespaces/space/services/api-devloop")
    lease = next(each for each in stale.leases)
    with pytest.raises(Exception, match="leases"):
        await claims.perform(objects.delete("leases", lease, ""))


def test_services_that_cannot_be_led_are_refused_with_the_reason() -> None:
    assert objects.unsupported(service()) == ("", False)
    for spec_, word, by_pods in (
        ({"clusterIP": "None"}, "headless", True),
        ({"type": "ExternalName"}, "ExternalName", False),
        ({"selector": {}}, "no selector", False),
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, "externalTrafficPolicy", True),
        ({"ports": [{"port": 53, "protocol": "UDP"}]}, "UDP", True),
    ):
        why, other_way = objects.unsupported(service(**spec_))
        assert word in why and other_way is by_pods


def test_a_lease_is_over_when_it_was_not_renewed_for_its_duration_on_the_observers_clock() -> None:
    expiry = Expiry()
    lease = objects.lease(spec(routes=(ALL,)), seconds=30)
    expiry.see([lease], 1000.0)
    assert not expiry.over(1029.9) and expiry.next(1010.0) == 20.0
    lease = {**lease, "spec": {**lease["spec"], "renewTime": "another"}}
    expiry.see([lease], 1020.0)
    expiry.see([lease], 1040.0)
    assert not expiry.over(1049.9)
    assert expiry.over(1050.0) == {lease_of(spec()): objects.Dead(renewed="another")}
    expiry.see([], 1051.0)
    assert not expiry.over(2000.0) and expiry.next(2000.0) is None


async def test_a_workload_whose_size_can_not_be_read_keeps_its_lease() -> None:
    """By an agent without the right, say: deleting the lease would leave the workload at zero for good."""
    api = FakeApi(workloads={"deployments/worker": 3})
    wanted = spec(kind="replace", workload="deployment/worker", service="")
    await attach(api, wanted, 3)
    leases = tuple((await Claims(api).snapshot()).leases)  # type: ignore[arg-type]
    dead = {lease_of(wanted)}
    assert objects.next_step(objects.Snapshot((), leases, {}), dead) is None
    step = objects.next_step(objects.Snapshot((), leases, {"deployment/worker": None}), dead)
    assert step is not None and step.verb == "DELETE"
    step = objects.next_step(objects.Snapshot((), leases, {"deployment/worker": 0}), dead)
    assert step is not None and (step.verb, step.replicas) == ("SCALE", 3)


@pytest.mark.parametrize(
    ("seen", "now", "same"),
    [
        (("u1", "t1"), ("u1", "t1"), True),
        (("u1", "t1"), ("u1", "t2"), False),  # its laptop has woken up
        (("u1", "t1"), ("u2", "t1"), False),  # it was taken over; a replaced workload's lease has one name
    ],
)
async def test_a_lease_is_dead_as_it_was_seen_and_not_by_its_name(
    seen: tuple[str, str], now: tuple[str, str], same: bool
) -> None:
    def lease(uid: str, renewed: str) -> dict[str, Any]:
        made = objects.lease(spec(service="", ports={}, **REPLACE), replicas=3)
        made["metadata"]["uid"], made["spec"]["renewTime"] = uid, renewed
        return made

    expiry = Expiry()
    expiry.see([lease(*seen)], 0.0)
    dead = expiry.over(1000.0)
    step = objects.next_step(objects.Snapshot((), (lease(*now),), {"deployment/worker": 0}), dead)
    assert (step is not None) is same
    # A client's own is what it knows of it: whose attachment it is.
    named = {lease_of(spec(**REPLACE)): objects.Dead(attachment=spec().id)}
    assert objects.is_dead(lease(*now), named)
    named = {lease_of(spec(**REPLACE)): objects.Dead(attachment=spec("ben").id)}
    assert not objects.is_dead(lease(*now), named)


def agents(api: FakeApi, dead: dict[str, objects.Dead]) -> objects.Call | None:
    """What the agent does next."""
    leases = tuple(each for path, each in api.objects.items() if "/leases/" in path)
    found = tuple(each for path, each in api.objects.items() if "/services/" in path)
    sizes = {"deployment/worker": api.sizes["deployments/worker"]}
    return objects.next_step(objects.Snapshot(found, leases, sizes), dead, vouched=True)


@pytest.mark.parametrize("named", [{}, {"service": "api", "ports": {80: 3000}}])
async def test_the_agent_starts_nothing_by_what_a_lease_alone_says(named: dict[str, Any]) -> None:
    """Leases are anybody's who elects a leader, and the agent may start whatever there is, as often as it likes."""
    api = FakeApi(service(), workloads={"deployments/worker": 3})
    wanted = spec(**{"service": "", "ports": {}, **named, **REPLACE})
    await Claims(api).acquire(wanted, replicas=500)  # type: ignore[arg-type]
    api.sizes["deployments/worker"] = 0
    dead = {lease_of(wanted): objects.Dead()}
    assert agents(api, dead) is None, "the lease stays, and whoever may start it does"
    # A marker is a Service, which they may not write; and one of something else is none.
    for other in (spec("eve", **{**named, **REPLACE}), spec(**{**named, **REPLACE, "workload": "deployment/other"})):
        await Claims(api).mark(other, "key", replicas=500)  # type: ignore[arg-type]
        step = agents(api, dead)
        assert step is None or step.verb == "DELETE"
        del api.objects[f"/api/v1/namespaces/space/services/{objects.marker_name(other)}"]
    await Claims(api).mark(wanted, "key", replicas=3)  # type: ignore[arg-type]
    step = agents(api, dead)
    assert step is not None and (step.verb, step.replicas) == ("SCALE", 3)
    # While its size can't be read, what vouches for it stays, too.
    leases = tuple(each for path, each in api.objects.items() if "/leases/" in path)
    markers = tuple(each for each in api.objects.values() if objects.is_marker(each))
    assert objects.next_step(objects.Snapshot(markers, leases, {}), dead, vouched=True) is None
    # Its holder has rights of their own.
    assert await Claims(api).restore({lease_of(wanted)})  # type: ignore[arg-type]
    assert api.sizes["deployments/worker"] == 500 and len(api.objects) == 1


async def test_a_marker_follows_the_size_that_somebody_has_asked_for_since() -> None:
    api = FakeApi(workloads={"deployments/worker": 0})
    wanted, claims = spec(service="", ports={}, **REPLACE), Claims(api)  # type: ignore[arg-type]
    await claims.acquire(wanted, replicas=3)
    await claims.mark(wanted, "key", replicas=3)
    await claims.mark(wanted, "key", replicas=5)
    assert not any(each.startswith("DELETE") for each in api.calls), "nothing is ever without it"
    step = agents(api, {lease_of(wanted): objects.Dead()})
    assert step is not None and step.replicas == 5
    made = api.objects[f"/api/v1/namespaces/space/services/{objects.marker_name(wanted)}"]
    assert objects.shadows(made) and not objects.is_marked(made), "it leads nowhere, and is in no list"


@pytest.mark.parametrize("others", [("ada",), ("ada", "cem")])
async def test_who_leaves_at_the_address_leaves_it_whoever_has_it_in_the_pods(others: tuple[str, ...]) -> None:
    """The Service led to an agent that has nobody to lead it on to."""
    api = FakeApi(service())
    before = api.plain()
    there = spec("ben", **route("ben"))
    pods = [spec(each, way="pods", **route(each)) for each in others]
    for each in (pods[0], there, *pods[1:]):
        await attach(api, each)
    await Claims(api).restore({lease_of(there)})  # type: ignore[arg-type]
    left = api.plain()
    assert left["/api/v1/namespaces/space/services/api"] == before["/api/v1/namespaces/space/services/api"]
    assert "/api/v1/namespaces/space/services/api-devloop" not in left
    assert all(f"/api/v1/namespaces/space/services/{objects.marker_name(each)}" in left for each in pods)
    for each in pods:
        await Claims(api).restore({lease_of(each)})  # type: ignore[arg-type]
    assert api.plain() == before


async def test_what_attaching_and_leaving_ask_the_api_server() -> None:
    """Each is a round trip, one after the other, and what a developer waits for."""
    api = FakeApi(service(), service("web"))
    asked: list[str] = []
    api.before = lambda method, path: asked.append(f"{method} {path.rpartition('/space/')[2]}")
    claims = Claims(api)  # type: ignore[arg-type]
    found = await claims.service("api")
    asked.clear()
    await claims.acquire(spec())
    assert found is not None
    await claims.shadow(found)
    await claims.lead(spec(), LISTENERS, found)
    assert asked == ["POST leases", "POST services", "PUT services/api"]
    asked.clear()
    await claims.restore({lease_of(spec())})
    assert asked == [
        "GET services",
        "GET leases",
        "PUT services/api",
        "GET leases",
        "DELETE services/api-devloop",
        "DELETE leases/devloop-api-ada",
    ]


async def test_a_service_that_has_changed_since_it_was_looked_at_is_looked_at_again() -> None:
    api = FakeApi(service())
    ada, ben = spec("ada", **route("ada")), spec("ben", **route("ben"))
    before = await Claims(api).service("api")  # type: ignore[arg-type]
    await attach(api, ben)
    claims = Claims(api)  # type: ignore[arg-type]
    await claims.acquire(ada)
    await claims.lead(ada, LISTENERS, before)
    left = api.objects["/api/v1/namespaces/space/services/api"]
    assert objects.is_whole(left, ben.id) and objects.is_whole(left, ada.id)


async def test_who_comes_after_the_service_was_put_back_keeps_the_shadow() -> None:
    api = FakeApi(service())
    ada, ben = spec("ada", **route("ada")), spec("ben", **route("ben"))
    await attach(api, ada)
    shadow = "/api/v1/namespaces/space/services/api-devloop"
    came = False

    def just_after(method: str, path: str) -> None:
        nonlocal came
        led = api.objects["/api/v1/namespaces/space/services/api"]
        if not came and not objects.is_marked(led):
            came = True
            other = Claims(api)  # type: ignore[arg-type]
            for step in (other.acquire(ben), other.shadow(led)):
                with contextlib.suppress(StopIteration):
                    step.send(None)

    api.before = just_after
    await Claims(api).restore({lease_of(ada)})  # type: ignore[arg-type]
    assert came and shadow in api.objects
    assert [each for each in api.objects if "leases" in each] == [
        f"/apis/coordination.k8s.io/v1/namespaces/space/leases/{lease_of(ben)}"
    ]


async def test_what_stands_for_an_attachment_in_the_pods_goes_with_it_and_no_others() -> None:
    api = FakeApi(service())
    before = api.plain()
    ada, ben = spec("ada", way="pods", **route("ada")), spec("ben", **route("ben"))
    for each in (ada, ben):
        await attach(api, each)
    await Claims(api).restore({lease_of(ada)})  # type: ignore[arg-type]
    assert f"/api/v1/namespaces/space/services/{objects.marker_name(ada)}" not in api.objects
    assert objects.is_whole(api.objects["/api/v1/namespaces/space/services/api"], ben.id)
    await Claims(api).restore({lease_of(ben)})  # type: ignore[arg-type]
    assert api.plain() == before


async def test_a_marker_is_made_once_anew_for_another_key_and_over_nothing_of_others() -> None:
    api = FakeApi(service())
    wanted, claims = spec(way="pods"), Claims(api)  # type: ignore[arg-type]
    path = f"/api/v1/namespaces/space/services/{objects.marker_name(wanted)}"
    await claims.mark(wanted, "key", service())
    made = api.objects[path]
    assert objects.marks(made, wanted, "key") and not objects.marks(made, wanted, "other")
    assert not objects.is_marked(made) and objects.shadows(made) == "api", "it leads nowhere, and is in no list"
    await claims.mark(wanted, "key", service())
    assert api.objects[path] is made
    await claims.mark(wanted, "other", service())
    assert objects.marks(api.objects[path], wanted, "other")
    api.objects[path] = {**service(objects.marker_name(wanted)), "metadata": {"name": objects.marker_name(wanted)}}
    with pytest.raises(AttachError, match="it is not devloop's"):
        await claims.mark(wanted, "key", service())

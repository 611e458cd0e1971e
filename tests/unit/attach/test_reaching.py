"""Who is kept from whom is tried out, said by the policy's name, and looked at for as long as it is attached."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.agent.spec import Spec
from devloop.attach.attachment import Attachment
from devloop.attach.policies import applies
from devloop.attach.reaching import BarredError, Reaching
from devloop.attach.seam import Wanted
from devloop.attach.trying import _WAYS, tried
from devloop.errors import RemoteError
from devloop.remote.kubernetes.api import ApiError
from tests.waiting import until

from .fake_api import service
from .test_policies import CLIENTS, DENY, FROM_SHOP, INGRESS, OUT, admits, policy

LISTENERS = {80: 20000, 81: 20001}
AGENT, API_1 = "10.0.0.9", "10.0.0.1"


def pod(name: str, address: str, **labels: str) -> dict[str, Any]:
    ports = [{"name": "web", "containerPort": 8080}]
    return {
        "metadata": {"name": name, "labels": labels or {"app": name}, "uid": name},
        "spec": {"containers": [{"name": "main", "ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}], "podIP": address, "conditions": []},
    }


def agent() -> dict[str, Any]:
    made = pod("devloop-agent", AGENT, **{"devloop.dev/agent": "true"})
    made["status"]["containerStatuses"] = [{"state": {"running": {}}, "ready": True}]
    return made


class Api:
    namespace, where = "space", "x"

    def __init__(self, *policies: dict[str, Any], forbidden: bool = False, originals: int = 1) -> None:
        self.policies, self.forbidden = list(policies), forbidden
        self.pods = [agent(), pod("web", "10.0.0.2"), pod("other", "10.0.0.3")]
        self.pods += [pod(f"api-{n}", f"10.0.1.{n}", app="api") for n in range(originals)]

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        if path.endswith("/networkpolicies"):
            if self.forbidden:
                raise ApiError(403, "Forbidden", "no", where="x")
            return {"items": self.policies}
        return {"items": self.pods}


class Pods:
    """What commands in pods say: `open` are those that reach the agent, all reach the original."""

    def __init__(self, *open_: str, tool: bool = True, denied: bool = False, nothing: bool = False) -> None:
        self.open, self.tool, self.denied, self.nothing = open_, tool, denied, nothing
        self.asked: list[str] = []

    async def __call__(self, name: str, container: str, command: Sequence[str]) -> bytes:
        if self.denied:
            raise RemoteError("pods/exec is forbidden", where="x")
        if not self.tool:
            return b""
        if name not in self.asked:
            self.asked.append(name)
        targets = [each for each in command if each.count(".") == 3 and "\n" not in each]
        said = [
            "reached" if name in self.open else "silent" if AGENT in each or self.nothing else "reached"
            for each in targets
        ]
        return "\n".join(said).encode()


def reaching(api: Api, run: Pods | None, **more: Any) -> Reaching:
    async def none(*_: Any) -> None: ...

    given = {"service": none, "session": lambda: None, "bar": none, "clear": lambda _: None, **more}
    return Reaching(cast(Any, api), cast(Any, run), **given)


def attachment(**more: Any) -> Attachment:
    spec = Spec("one", "ada", "h", more.pop("kind", "intercept"), "now", "api", {80: 8080}, **more)
    return Attachment(spec, Wanted("intercept", "api"), cast(Any, SimpleNamespace()), lambda _: None)


async def test_policies_are_worked_out_once_for_each_pod_and_not_in_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine whose loop is busy for 2 s is cut by the agent."""
    asked: list[int] = []

    def counted(*given: Any) -> bool:
        asked.append(threading.get_ident())
        return applies(*given)

    monkeypatch.setattr("devloop.attach.policies.applies", counted)
    to_api = [{"to": [{"podSelector": {"matchLabels": {"app": "api"}}}]}]
    found = [policy(f"p{n}", podSelector={"matchLabels": {"app": f"a{n}"}}, egress=to_api) for n in range(10)]
    api = Api(*found, originals=3)
    api.pods += [pod(f"a{n}", f"10.0.2.{n}") for n in range(30)]
    many = service(ports=[{"port": port, "targetPort": 8080} for port in range(80, 90)])
    of_its_ports = {each["port"]: 20000 + each["port"] for each in many["spec"]["ports"]}
    with pytest.raises(BarredError):
        await reaching(api, None).check(attachment(), many, of_its_ports, probed=True)
    with pytest.raises(BarredError):
        no_way_out = Api(policy("p", policyTypes=["Egress"]))
        await reaching(no_way_out, None).check_doors(attachment(), many)
    kinds = 3 + 30 + 2
    assert len(asked) <= kinds * len(found) * 2 + 100
    assert threading.get_ident() not in asked


@pytest.mark.parametrize("policies", [(), (CLIENTS,), (policy("any", podSelector={}, ingress=[{}]),)])
async def test_nothing_is_tried_where_no_policy_is_in_anybodys_way(policies: Any) -> None:
    run = Pods()
    await reaching(Api(*policies), run).check(attachment(), service(), LISTENERS)
    assert run.asked == []


@pytest.mark.parametrize(
    ("api", "run", "said"),
    [
        (Api(OUT), Pods(), r"pod web can't connect to the agent \(the NetworkPolicy out does not let them out"),
        (Api(DENY, admits({})), Pods(), r"the NetworkPolicy deny does not admit them"),
        # It can't be tried out, and what the policies say is plain.
        (Api(OUT), Pods(denied=True), "can't be tried out there: pods/exec is forbidden"),
        (Api(OUT), Pods(tool=False), "its image has no program"),
        (Api(OUT), None, "no command can be run"),
        # Nobody is kept back of this namespace: of another one they are.
        (
            Api(FROM_SHOP, admits(INGRESS)),
            Pods(),
            "the namespace ingress may connect to its pods, and the NetworkPolicy shop",
        ),
        # The workload is replaced, and its pods are away.
        (Api(OUT, originals=0), Pods(), "the NetworkPolicy out does not let them out"),
    ],
)
async def test_who_would_wait_in_vain_is_named_with_the_policy(api: Api, run: Pods | None, said: str) -> None:
    with pytest.raises(BarredError, match=said) as problem:
        await reaching(api, run).check(attachment(), service(), LISTENERS)
    assert problem.value.known and "Nothing was changed" in (problem.value.hint or "")


@pytest.mark.parametrize(
    ("api", "run"),
    [
        # The cluster enforces none.
        (Api(OUT), Pods("web")),
        (Api(DENY, admits({})), Pods("web", "other", "api-0")),
        # It does not reach the original either: it is no client.
        (Api(OUT), Pods(nothing=True)),
        # Nothing sure, and it can't be tried.
        (Api(policy("o", podSelector={}, egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}])), Pods(denied=True)),
        (Api(OUT, forbidden=True), Pods()),
    ],
)
async def test_what_keeps_nobody_away_is_no_reason(api: Api, run: Pods) -> None:
    await reaching(api, run).check(attachment(), service(), LISTENERS)


async def test_what_an_ip_block_says_is_tried_out() -> None:
    blocks = policy(
        "blocks", podSelector={"matchLabels": {"app": "web"}}, egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]
    )
    with pytest.raises(BarredError, match="the NetworkPolicy blocks"):
        await reaching(Api(blocks), Pods()).check(attachment(), service(), LISTENERS)
    await reaching(Api(blocks), Pods("web")).check(attachment(), service(), LISTENERS)


@pytest.mark.parametrize(
    ("api", "said", "offers", "known"),
    [
        (Api(CLIENTS), "would wait in vain: the NetworkPolicy only does not admit it", True, True),
        (Api(forbidden=True), "a NetworkPolicy may be why, and they may not be read", True, False),
        (Api(), "no NetworkPolicy of the namespace selects them", True, False),
        (
            Api(policy("out", podSelector={}, policyTypes=["Egress"])),
            "the NetworkPolicy out does not let it out",
            False,
            True,
        ),
    ],
)
async def test_the_agents_own_refusal_names_the_policy_and_the_other_way(
    api: Api, said: str, offers: bool, known: bool
) -> None:
    error = await reaching(api, Pods()).refusal(service(), ["10.0.0.1:8080"])
    assert said in error.what and error.known is known and error.hint is not None
    assert ("--way pods" in error.hint) is offers, "the pods have to reach the agent for that"


async def test_doors_are_refused_where_the_pods_do_not_reach_the_agent() -> None:
    inside = policy("inside", egress=[])
    inside["spec"]["policyTypes"] = ["Egress"]
    found = attachment(way="pods")
    with pytest.raises(BarredError, match="the NetworkPolicy inside does not let them out to it"):
        await reaching(Api(inside), Pods()).check_doors(found, service())
    await reaching(Api(inside), Pods("api-0")).check_doors(found, service())
    await reaching(Api(CLIENTS), Pods()).check_doors(found, service())


async def test_a_policy_that_comes_and_goes_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.attach.reaching.SETTLE_SECONDS", (0.0,))
    api, told = Api(), asyncio.Queue[str]()
    found = attachment()
    found.listeners = LISTENERS

    class Session:
        async def reach(self, _: Spec) -> list[str]:
            return []

    async def watch(path: str, **_: str) -> Any:
        assert path.endswith("/networkpolicies")
        while True:
            yield await changes.get(), OUT

    async def there(_: str) -> Any:
        return service()

    async def bar(_: Attachment, why: str) -> None:
        found.barred = why
        told.put_nowait(why)

    def clear(_: Attachment) -> None:
        found.barred = ""
        told.put_nowait("")

    api.watch = watch  # type: ignore[attr-defined]
    changes = asyncio.Queue[str]()
    work = reaching(api, Pods(), service=there, session=lambda: Session(), bar=bar, clear=clear)
    tasks = [asyncio.ensure_future(work.watching()), asyncio.ensure_future(work.keeping(found))]
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
        changes.put_nowait("ADDED")
        assert "the NetworkPolicy out" in await told.get()
        changes.put_nowait("DELETED")
        assert await told.get() == ""
    for each in tasks:
        each.cancel()


class Watched:
    """An attachment that is watched, in a cluster where policies come; `reaches`: the agent does, the original."""

    def __init__(self, *policies: dict[str, Any], **more: Any) -> None:
        self.api, self.found = Api(*policies), attachment(**more)
        self.found.listeners, self.found.task = LISTENERS, cast(Any, object())
        self.reaches, self.tried = True, 0
        self.states = asyncio.Queue[str]()
        self.api.watch = self.watch  # type: ignore[attr-defined]
        self.changes = asyncio.Queue[tuple[str, dict[str, Any]]]()
        self.work = reaching(
            self.api, Pods(), service=self.service, session=lambda: self, bar=self.bar, clear=self.clear
        )

    async def reach(self, _: Spec) -> list[str]:
        self.tried += 1
        return [] if self.reaches else ["10.0.1.0:8080"]

    async def watch(self, path: str, **_: str) -> Any:
        while True:
            yield await self.changes.get()

    async def service(self, _: str) -> Any:
        return service()

    async def bar(self, _: Attachment, why: str) -> None:
        self.found.barred = why
        self.states.put_nowait(why)

    def clear(self, _: Attachment) -> None:
        self.found.barred = ""
        self.states.put_nowait("")

    async def __aenter__(self) -> Watched:
        works = (self.work.watching(), self.work.keeping(self.found), self.work.foreseeing(self.found))
        self.tasks = [asyncio.ensure_future(each) for each in works]
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self.tasks:
            each.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_a_policy_that_keeps_the_agent_out_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.attach.reaching.SETTLE_SECONDS", (60.0,))
    async with Watched() as here, asyncio.timeout(5):
        here.changes.put_nowait(("ADDED", CLIENTS))
        assert "kept from its pods: the NetworkPolicy only does not admit it" in await here.states.get()
        assert here.tried == 0


async def test_a_policy_that_keeps_a_client_from_the_agent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.attach.reaching.SETTLE_SECONDS", (60.0,))
    async with Watched() as here, asyncio.timeout(5):
        here.changes.put_nowait(("ADDED", OUT))
        said = await here.states.get()
        assert said == "pod web is kept from the agent: the NetworkPolicy out does not let them out to it"
        assert here.tried == 0


@pytest.mark.parametrize("more", [{"way": "pods"}, {"kind": "replace"}], ids=str)
async def test_what_does_not_lead_through_the_agent_gives_way_to_what_shows_alone(more: Any) -> None:
    async with Watched(CLIENTS, **more) as here:
        await here.work._foresee(here.found)
        assert here.states.empty()


async def test_where_nothing_is_enforced_it_comes_back_and_the_next_policy_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("devloop.attach.reaching.SETTLE_SECONDS", (0.0, 0.0, 0.0))
    async with Watched() as here, asyncio.timeout(5):
        here.changes.put_nowait(("ADDED", CLIENTS))
        assert await here.states.get()
        assert await here.states.get() == "" and here.tried == 3, "it may be in force a moment later"
        await here.work._foresee(here.found)
        assert here.states.empty()


async def test_what_shows_counts_for_more_than_what_was_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.attach.reaching.SETTLE_SECONDS", (0.0,))
    async with Watched() as here, asyncio.timeout(5):
        here.reaches = False
        here.changes.put_nowait(("ADDED", CLIENTS))
        assert "is kept from its pods" in await here.states.get()
        assert "can't connect to its pods (10.0.1.0:8080)" in await here.states.get()
        here.reaches = True
        here.changes.put_nowait(("DELETED", CLIENTS))
        assert await here.states.get() == ""
        here.changes.put_nowait(("ADDED", CLIENTS))
        assert "is kept from its pods" in await here.states.get()


async def test_an_attach_shows_whether_policies_are_in_force() -> None:
    work = reaching(Api(CLIENTS), Pods())
    await work.check(attachment(), service(), LISTENERS, probed=True)
    assert work._enforced is False


async def test_a_policy_that_comes_while_another_one_is_looked_at_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.attach.reaching.SETTLE_SECONDS", (0.0,))
    async with Watched(way="pods") as here, asyncio.timeout(5):
        looks = asyncio.Queue[asyncio.Event]()

        async def reach(_: Spec) -> list[str]:
            ends = asyncio.Event()
            looks.put_nowait(ends)
            await ends.wait()
            return []

        monkeypatch.setattr(here, "reach", reach)
        here.changes.put_nowait(("ADDED", CLIENTS))
        first = await looks.get()
        here.changes.put_nowait(("ADDED", OUT))
        await until(lambda: here.work._cache is not None and len(here.work._cache) == 2)
        first.set()
        await looks.get()


@pytest.mark.slow
@pytest.mark.parametrize("way", _WAYS, ids=lambda way: way[0])
async def test_each_program_tells_a_refusal_from_silence(way: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    program = "nc" if way[0] == "sh" else way[0]
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    monkeypatch.setattr("devloop.attach.trying._WAYS", (way,))

    async def run(_: str, __: str, command: Sequence[str]) -> bytes:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0]

    with socket.socket() as there, socket.socket() as full:
        for each in (there, full):
            each.bind(("127.0.0.1", 0))
        there.listen()
        full.listen(0)  # with its queue full the kernel drops a SYN, as a policy does
        waiting = []
        for _ in range(2):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        assert await tried(run, "", "", [full.getsockname(), there.getsockname()]) == (False, True)
        for each in waiting:
            each.close()


async def test_an_image_without_any_program_says_nothing() -> None:
    async def run(*_: Any) -> bytes:
        return json.dumps("no such thing").encode()

    assert await tried(run, "", "", [("10.0.0.1", 80)]) is None

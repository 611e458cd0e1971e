"""Who the agent lets in, and how its own key is published: by the rights of the Roles, against who misuses them."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from devloop.agent import authorized, keys, server
from devloop.agent.authorized import ENTRY_BYTES, Authorized
from devloop.agent.hostkey import HostKeyError, Publisher, host_key
from devloop.agent.keys import AGENT, HOST_KEY, LABEL, LIFE, LIFE_SECONDS, MOST_SECONDS, POD_UID, entry
from devloop.agent.objects import KEPT
from devloop.agent.paths import GOODBYE
from devloop.remote.kubernetes.api import Api, ApiError
from tests.waiting import until, until_so

from .admitted import Admitted
from .pocket_cluster import DEVELOPER, NAMESPACE, Cluster, Document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
PAGE = 16
"""So many entries at a time, in these tests."""
POD, UID = "devloop-agent", "uid-1"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    made = Cluster()
    with made.served(folder):
        yield made


@pytest.fixture
async def developer(cluster: Cluster) -> AsyncIterator[Api]:
    api = cluster.developers_api()
    yield api
    await api.close()


class Agent:
    """One that serves; `key` is a host key that is pinned."""

    def __init__(self, port: int, key: asyncssh.SSHKey) -> None:
        self.port = port
        self.key = key

    @asynccontextmanager
    async def login(self, key: asyncssh.SSHKey | list[asyncssh.SSHKey], user: str, **more: Any) -> AsyncIterator[Any]:
        options: dict[str, Any] = {"username": user, "client_keys": key, "config": None, "agent_path": None}
        options["known_hosts"] = ([self.key.convert_to_public()], [], [])
        async with asyncssh.connect("127.0.0.1", self.port, **options, **more) as connection:
            yield connection

    async def enters(self, key: asyncssh.SSHKey, user: str) -> bool:
        try:
            async with self.login(key, user):
                return True
        except asyncssh.PermissionDenied:
            return False


@asynccontextmanager
async def serving(cluster: Cluster, folder: Path, patch: pytest.MonkeyPatch, **more: Any) -> AsyncIterator[Agent]:
    patch.setattr(server, "cluster_api", cluster.agents_api)
    async with server.serve(folder, 0, **more) as port:
        yield Agent(port, asyncssh.read_private_key(folder / "host_key"))


@pytest.fixture
async def agent(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with serving(cluster, tmp_path, monkeypatch) as made:
        yield made


def a_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


def made_for(key: asyncssh.SSHKey, suffix: str = "0" * 16, **metadata: Any) -> Document:
    """An entry, changed."""
    made = entry(key.public_data, suffix, "ada@here", POD, UID)
    made["metadata"] |= metadata
    return made


USER = keys.user("ada@here", "0" * 16)


async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "cluster_api", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        before = psutil.Process().num_fds()
        with pytest.raises(server.AgentError, match=f"127.0.0.1:{port}"):
            async with server.serve(tmp_path, port, admission=Admitted()):
                pass
        await asyncio.sleep(0)
        assert psutil.Process().num_fds() == before


async def test_without_a_service_account_nobody_is_let_in_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "cluster_api", lambda: None)
    with pytest.raises(server.AgentError, match="service account"):
        async with server.serve(tmp_path, 0):
            pass


# --- Developers' keys ---------------------------------------------------------------------------------------------


async def test_who_joined_a_moment_ago_is_let_in_and_nobody_else(agent: Agent, developer: Api) -> None:
    ada, eve = a_key(), a_key()
    assert not await agent.enters(ada, USER)
    await developer.request("POST", MAPS, made_for(ada))
    assert await agent.enters(ada, USER)
    # A key decides, and no name: Eve knows Ada's entry, and what she calls herself.
    assert not await agent.enters(eve, USER)
    for user in ("ada@here", "", "ada@here/", "ada@here/" + "1" * 16, f"{USER}/../../secrets/x", f"../{MAPS}/x"):
        assert not await agent.enters(ada, user), user


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
async def test_a_developer_changes_and_removes_nobodys_key(agent: Agent, developer: Api, method: str) -> None:
    ada, eve = a_key(), a_key()
    await developer.request("POST", MAPS, made_for(ada))
    name = made_for(ada)["metadata"]["name"]
    body = {"data": {"key": eve.export_public_key().decode()}}
    for target in (f"{MAPS}/{name}", f"{MAPS}/{AGENT}", MAPS):
        with pytest.raises(ApiError) as refused:
            await developer.request(method, target, None if method == "DELETE" else body)
        assert refused.value.status == 403
    # Nor is the name to be had a second time.
    with pytest.raises(ApiError) as refused:
        await developer.request("POST", MAPS, {**made_for(ada), "data": {"key": "eve's"}})
    assert refused.value.status == 409
    assert await agent.enters(ada, USER)


async def test_another_key_under_a_name_lets_nobody_in(agent: Agent, cluster: Cluster) -> None:
    """Should somebody have the right to delete and create: a name stands for one key alone."""
    ada, eve = a_key(), a_key()
    name = made_for(ada)["metadata"]["name"]
    forged = {**made_for(eve), "data": {"key": eve.export_public_key().decode(), "host_key": "?"}}
    forged["metadata"]["name"] = name
    cluster.put("configmaps", forged)
    assert not await agent.enters(eve, USER)


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {}},
        {"labels": None},
        {"labels": {LABEL: "false"}},
        {"deletionTimestamp": "2026-11-28T00:00:00Z"},
        {"creationTimestamp": "yesterday"},
        {"creationTimestamp": None},
        {"annotations": {"x": "y" * ENTRY_BYTES}},
        {"annotations": {LIFE: "0"}, "creationTimestamp": "2020-01-01T00:00:00Z"},
        {"annotations": {LIFE: "9" * 400}, "creationTimestamp": "2020-01-01T00:00:00Z"},
        {"annotations": {LIFE: "-1e9"}, "creationTimestamp": "2020-01-01T00:00:00Z"},
    ],
)
async def test_an_entry_that_is_none_keeps_nobody_else_out(agent: Agent, cluster: Cluster, metadata: Document) -> None:
    ada, eve = a_key(), a_key()
    cluster.put("configmaps", made_for(eve, **metadata))
    cluster.put("configmaps", made_for(ada))
    assert not await agent.enters(eve, USER)
    assert await agent.enters(ada, USER)


async def test_thousands_of_entries_cost_a_login_nothing(
    cluster: Cluster, developer: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Authorized, "keep", Admitted.keep)  # a sweep reads lists, whoever logs in
    ada = a_key()
    for number in range(3000):
        cluster.put("configmaps", made_for(a_key() if number == 0 else ada, f"{number + 1:016x}"))
    await developer.request("POST", MAPS, made_for(ada))
    cluster.asked.clear()
    async with serving(cluster, tmp_path, monkeypatch) as agent:
        assert await agent.enters(ada, USER)
    assert [verb for _, verb, _ in cluster.asked] == ["get"], "one object, by its name"


async def test_one_connection_has_few_keys_looked_up(agent: Agent, cluster: Cluster) -> None:
    many = [a_key() for _ in range(20)]
    cluster.put("configmaps", made_for(many[-1]))
    with pytest.raises(asyncssh.PermissionDenied):
        async with agent.login(many, USER):
            pass
    assert len([each for each in cluster.asked if each[1] == "get"]) == server.LOOK_UPS


async def test_an_entry_is_good_for_its_time_and_those_who_are_here_stay(agent: Agent, cluster: Cluster) -> None:
    ada, ben, eve = a_key(), a_key(), a_key()
    for each in (ada, ben):
        cluster.put("configmaps", made_for(each))
    cluster.put("configmaps", made_for(eve, annotations={LIFE: str(10 * MOST_SECONDS)}))
    async with agent.login(ada, USER) as connection:
        cluster.ahead = timedelta(seconds=LIFE_SECONDS + 60)
        assert (await connection.run("clients", check=True)).stdout == "1"
        assert not await agent.enters(ben, USER)
        assert await agent.enters(eve, USER)
        cluster.ahead = timedelta(seconds=MOST_SECONDS + 60)
        assert not await agent.enters(eve, USER), "the agent has a bound of its own"


async def test_who_says_goodbye_is_forgotten_and_nobody_else_is(agent: Agent, cluster: Cluster) -> None:
    ada, ben = a_key(), a_key()
    for each in (ada, ben):
        cluster.put("configmaps", made_for(each))
    # The same machine's second engine has an entry of its own.
    cluster.put("configmaps", made_for(ada, "1" * 16))
    async with agent.login(ben, USER) as other, agent.login(ada, USER) as connection:
        # The second engine's is about to come.
        assert (await connection.run(GOODBYE, check=True)).stdout == "3"
        assert not await agent.enters(ada, USER)
        assert await agent.enters(ada, keys.user("ada@here", "1" * 16))
        assert await agent.enters(ben, USER)
        assert (await other.run("clients", check=True)).stdout == "2"
    assert made_for(ada)["metadata"]["name"] not in cluster.names("configmaps")


async def test_a_direct_connection_is_for_the_key_that_has_asked_for_it(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, eve = a_key(), a_key()
    for each in (ada, eve):
        cluster.put("configmaps", made_for(each))
    async with serving(cluster, tmp_path, monkeypatch, direct=0) as agent, agent.login(ada, USER) as base:

        async def directly(key: asyncssh.SSHKey) -> bool:
            told = json.loads(str((await base.run("direct", check=True)).stdout))
            sock = socket.create_connection(("127.0.0.1", told["port"]))
            sock.sendall(bytes.fromhex(told["ticket"]))
            sock.setblocking(False)
            options: dict[str, Any] = {"username": USER, "client_keys": [key], "config": None, "agent_path": None}
            try:
                async with asyncssh.connect(
                    sock=sock, known_hosts=([agent.key.convert_to_public()], [], []), **options
                ):
                    return True
            except asyncssh.PermissionDenied:
                return False

        cluster.ahead = timedelta(days=3)  # long after its entry was over
        assert await directly(ada)
        assert not await directly(eve), "with Ada's ticket, and a key that has an entry"


# --- Sweeping -----------------------------------------------------------------------------------------------------


async def test_what_is_over_is_removed_whatever_lies_between(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little of what others have written is read at a time, however large each is; and they are not in the way."""
    monkeypatch.setattr(authorized, "PAGE", PAGE)
    tracemalloc.start()
    book = Authorized(cluster.agents_api())
    ada, ben = a_key(), a_key()
    for number in range(2 * PAGE):
        cluster.put("configmaps", made_for(ada, f"{number:016x}"))
    huge = {LIFE: str(MOST_SECONDS), "x": "<" * (256 << 10)}
    for number in range(PAGE):
        cluster.put("configmaps", made_for(ben, f"{number:016x}", annotations=huge))
    cluster.put("configmaps", {"metadata": {"name": "no-entry", "labels": {LABEL: "true"}}})
    here = made_for(ada, "f" * 16)
    cluster.put("configmaps", here)
    book.entered(here["metadata"]["name"])
    cluster.ahead = timedelta(seconds=LIFE_SECONDS + 60)
    cluster.put("configmaps", made_for(ada, "e" * 16))
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    await book.sweep()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    left = set(cluster.names("configmaps"))
    assert {name for name in left if made_for(ada)["metadata"]["name"][:-17] in name} == {
        made_for(ada, "e" * 16)["metadata"]["name"],
        here["metadata"]["name"],
    }
    assert "no-entry" in left, "what is not the agent's to remove"
    # The server of this test is in the same process, and makes a whole page of 4 MiB before anybody reads it.
    assert peak < 24 << 20


async def test_somebody_who_is_just_joining_keeps_the_agent(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorized, "PAGE", PAGE)
    monkeypatch.setattr(authorized, "PAGES", 3)
    book = Authorized(cluster.agents_api())
    assert not await book.joining()
    ada = made_for(a_key())
    cluster.put("configmaps", ada)
    assert await book.joining()
    book.entered(ada["metadata"]["name"])
    book.left(ada["metadata"]["name"])
    assert not await book.joining(), "who has been here is not about to come"
    cluster.put("configmaps", made_for(a_key()))
    cluster.ahead = timedelta(seconds=authorized.JOINING_SECONDS + 2)
    assert not await book.joining()
    long_ago, eve = "2020-01-01T00:00:00Z", a_key()
    for number in range(3 * PAGE + 1):
        cluster.put("configmaps", made_for(eve, f"{number:016x}", creationTimestamp=long_ago))
    assert await book.joining(), "where there is no end, somebody may be"


async def test_an_api_that_fails_locks_nobody_out_for_longer_than_it_does(agent: Agent, cluster: Cluster) -> None:
    ada = a_key()
    cluster.put("configmaps", made_for(ada))
    cluster.broken = 1
    assert not await agent.enters(ada, USER)
    assert await agent.enters(ada, USER)


# --- The host key -------------------------------------------------------------------------------------------------


def published(cluster: Cluster) -> Document:
    with cluster.lock:
        found: Document = cluster.objects["configmaps", AGENT].get("data") or {}
        return dict(found)


def test_the_host_key_is_made_once_and_is_the_pods_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    key = host_key(folder)
    assert key.get_algorithm() == "ssh-ed25519"
    assert stat.S_IMODE((folder / "host_key").stat().st_mode) == 0o600
    assert [each.name for each in folder.iterdir()] == ["host_key"]
    assert host_key(folder).public_data == key.public_data, "a container that starts anew has the same"
    (folder / "host_key").write_text("no key")
    with pytest.raises(HostKeyError, match="host_key"):
        host_key(folder)


@pytest.mark.parametrize(
    "squatted",
    [
        None,
        {"metadata": {"name": AGENT}, "data": {HOST_KEY: "eve's", POD_UID: UID}},
        {"metadata": {"name": AGENT}, "immutable": True, "data": {HOST_KEY: "eve's", POD_UID: UID}},
        {"metadata": {"name": AGENT, "finalizers": ["eve.example/x"]}, "immutable": True},
        {"metadata": {"name": AGENT, "annotations": {KEPT: "true"}}, "immutable": True},
        {"metadata": {"name": AGENT, "annotations": {KEPT: "true"}}, "data": {HOST_KEY: "eve's", POD_UID: UID}},
        {"metadata": {"name": AGENT, "finalizers": ["x/y"], "deletionTimestamp": "now"}, "data": {}},
        {"metadata": {"name": AGENT}, "data": {"x": "y" * (1 << 20)}},
    ],
)
async def test_the_agent_alone_says_which_its_host_key_is(cluster: Cluster, squatted: Document | None) -> None:
    """A developer may create what is not there yet, also under the agent's name."""
    if squatted is not None:
        cluster.put("configmaps", squatted)
    key = a_key()
    await Publisher(cluster.agents_api(), key, POD, UID).publish()
    said = published(cluster)
    assert (said[HOST_KEY], said[POD_UID]) == (key.export_public_key().decode().strip(), UID)
    assert "PRIVATE" not in str(cluster.objects)
    before = list(cluster.asked)
    await Publisher(cluster.agents_api(), key, POD, UID).publish()
    assert [verb for _, verb, _ in cluster.asked[len(before) :]] == ["get"], "a restart changes nothing"


async def test_what_an_administrator_has_made_for_it_stays(cluster: Cluster) -> None:
    made = cluster.put("configmaps", {"metadata": {"name": AGENT, "annotations": {KEPT: "true"}}})
    await Publisher(cluster.agents_api(), a_key(), POD, "uid-1").publish()
    second = a_key()
    await Publisher(cluster.agents_api(), second, POD, "uid-2").publish()
    assert published(cluster) == {HOST_KEY: second.export_public_key().decode().strip(), POD_UID: "uid-2"}
    assert cluster.objects["configmaps", AGENT]["metadata"]["uid"] == made["metadata"]["uid"]


async def test_what_goes_with_a_pod_names_it_as_its_owner(cluster: Cluster, developer: Api) -> None:
    pod = cluster.put("pods", {"metadata": {"name": POD}})
    uid = pod["metadata"]["uid"]
    await Publisher(cluster.agents_api(), a_key(), POD, uid).publish()
    await developer.request("POST", MAPS, entry(a_key().public_data, "0" * 16, "ada", POD, uid))
    assert len(cluster.names("configmaps")) == 2
    cluster.remove("pods", POD)
    assert cluster.names("configmaps") == []


async def test_a_host_key_that_was_removed_is_published_anew_and_another_pods_is_left(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devloop.agent.hostkey.AGAIN_SECONDS", 0.02)
    publisher = Publisher(cluster.agents_api(), a_key(), POD, "uid-1")
    await publisher.publish()
    keeping = asyncio.create_task(publisher.keep())
    try:
        with cluster.lock:
            cluster.remove("configmaps", AGENT)
        await until(lambda: AGENT in cluster.names("configmaps"))
        await Publisher(cluster.agents_api(), a_key(), POD, "uid-2").publish()
        asked = len(cluster.asked)
        await until(lambda: len(cluster.asked) > asked + 3)
        assert published(cluster)[POD_UID] == "uid-2"
    finally:
        keeping.cancel()


async def test_an_agent_that_may_not_publish_says_which_right_is_missing(cluster: Cluster) -> None:
    cluster.denied.add(("agent", "create", "configmaps"))
    with pytest.raises(HostKeyError, match=r"role-agent\.yaml"):
        await Publisher(cluster.agents_api(), a_key(), POD, UID).publish()


async def test_an_api_server_that_fails_is_asked_again(cluster: Cluster) -> None:
    cluster.broken = 2
    await Publisher(cluster.agents_api(), a_key(), POD, UID).publish()
    assert published(cluster)[POD_UID] == UID


async def test_the_agent_leaves_when_nobody_is_here_and_nobody_is_about_to_come(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = cluster.put("pods", {"metadata": {"name": POD}})
    monkeypatch.setenv("HOSTNAME", POD)
    ada = entry(a_key().public_data, "0" * 16, "ada", POD, pod["metadata"]["uid"])
    cluster.put("configmaps", ada)
    async with serving(cluster, tmp_path, monkeypatch, linger=0.1):
        await until(lambda: sum(verb == "list" for _, verb, _ in cluster.asked) > 3)
        assert cluster.names("pods") == [POD], "Ada is just joining"
        cluster.ahead = timedelta(seconds=60)

        async def gone() -> bool:
            return not cluster.names("pods")

        await until_so(gone)
    assert cluster.names("configmaps") == []


def test_no_role_of_a_developer_writes_what_is_there() -> None:
    from .pocket_cluster import rules_of

    rules = rules_of(DEVELOPER)
    writes = {"update", "patch", "delete", "deletecollection", "*"}
    assert not any("configmaps" in rule["resources"] and writes & set(rule["verbs"]) for rule in rules)
    assert not any("secrets" in rule["resources"] and (writes | {"create"}) & set(rule["verbs"]) for rule in rules)
    assert not any("*" in rule["resources"] for rule in rules)

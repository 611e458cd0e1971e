"""An engine that joins an agent: both ends as they are, the rights of the Roles, a socket for the port-forward."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from devloop.agent import server
from devloop.agent.hostkey import Publisher
from devloop.agent.keys import AGENT, HOST_KEY, LIFE_SECONDS, POD_UID, entry, host_key_of
from devloop.agent.paths import PROTOCOL
from devloop.errors import RemoteError
from devloop.remote.kubernetes import joining, kept, podport
from devloop.remote.kubernetes.agent import AgentCarrier, dial
from devloop.remote.kubernetes.identity import Identity
from devloop.remote.kubernetes.install import Installation
from devloop.remote.kubernetes.kept import standing
from devloop.remote.kubernetes.podstate import AgentRefusedError
from tests.waiting import until

from .pocket_cluster import AGENT as AGENTS
from .pocket_cluster import DEVELOPER, Cluster, Document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

RUNNING = {"containerStatuses": [{"name": "agent", "state": {"running": {}}}]}


class Rig:
    """A cluster, and an agent in it that this process is."""

    def __init__(self, cluster: Cluster, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.cluster = cluster
        self.folder = folder
        self.patch = patch
        self.port = 0
        self.uid = ""
        self.told: list[str] = []

    def pod(self, **status: Any) -> None:
        """The agent's pod, as devloop makes it; another one than before."""
        metadata = {"name": AGENT, "labels": {"app.kubernetes.io/name": AGENT}}
        env = [{"name": "DEVLOOP_AGENT_LINGER", "value": "60"}]
        spec = {"containers": [{"name": "agent", "image": "x", "env": env}]}
        made = {"metadata": metadata, "spec": spec, "status": status or RUNNING}
        self.uid = self.cluster.put("pods", made)["metadata"]["uid"]

    @asynccontextmanager
    async def agent(self, *, publishes: bool = True, pod: bool = True) -> AsyncIterator[None]:
        """It runs."""
        if pod:
            self.pod()
        async with server.serve(self.folder / self.uid, 0) as self.port:
            if publishes:
                await self.publish()
            yield

    async def publish(self) -> None:
        """As its `__main__` does."""
        key = asyncssh.read_private_key(self.folder / self.uid / "host_key")
        await Publisher(self.cluster.agents_api(), key, AGENT, self.uid).publish()

    @asynccontextmanager
    async def developer(
        self, name: str = "ada@here", key: asyncssh.SSHKey | None = None
    ) -> AsyncIterator[Installation]:
        """One's engine, before it has joined."""
        api = self.cluster.developers_api()
        try:
            yield Installation(api, Identity(asyncssh.generate_private_key("ssh-ed25519"), name))
        finally:
            await api.close()

    async def dial(self, installation: Installation) -> AgentCarrier:
        """Join and log in."""
        made = await dial(installation, self.told.append, False, lambda: None)
        assert isinstance(made, AgentCarrier)
        return made

    def entries(self) -> list[str]:
        """The developers' keys that there are."""
        return [each for each in self.cluster.names("configmaps") if each != AGENT]

    def posts(self) -> int:
        """How many entries have been made, all in all."""
        return sum(each[:2] == (DEVELOPER, "create") for each in self.cluster.asked)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster()
    with cluster.served(folder):
        made = Rig(cluster, tmp_path, monkeypatch)

        class Port:
            """In place of a port-forward."""

            def __init__(self, api: Any, pod: str) -> None:
                self.pod = pod

            async def create_connection(self, factory: Callable[[], Any], host: str, port: int) -> Any:
                return await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", made.port)

            def close(self) -> None: ...

            async def wait_closed(self) -> None: ...

        monkeypatch.setattr(server, "cluster_api", cluster.agents_api)
        monkeypatch.setattr(podport, "PodPort", Port)
        monkeypatch.setattr(joining, "PodPort", Port)
        yield made


async def test_who_joins_pins_what_is_published_and_is_forgotten_when_they_leave(rig: Rig) -> None:
    async with rig.agent(), rig.developer() as ada, rig.developer("ben@here") as ben:
        carrier = await rig.dial(ada)
        other = await rig.dial(ben)
        assert len(rig.entries()) == 2
        found = await standing(ada.api)
        assert found is not None and found.clients is not None
        assert {(each.name, each.fingerprint) for each in found.clients} == {
            (each.who.name, each.who.key.get_fingerprint()) for each in (ada, ben)
        }
        await carrier.close()
        assert len(rig.entries()) == 1
        assert rig.cluster.names("pods") == [AGENT], "Ben is here"
        await other.close()
        assert rig.cluster.names("pods") == []
        assert rig.cluster.names("configmaps") == [], "what was beside it has gone with it"


async def test_a_connection_that_was_lost_comes_back_with_the_same_entry(rig: Rig) -> None:
    async with rig.developer() as ada:
        async with rig.agent():
            for _ in range(3):
                carrier = await rig.dial(ada)
                carrier.abort("lost")
                await carrier.lost()
            assert (rig.posts(), len(rig.entries())) == (1, 1)
        # Its container starts anew: the same pod, the same host key, and whom it knew it knows.
        async with rig.agent(pod=False):
            carrier = await rig.dial(ada)
            assert rig.posts() == 1
            await carrier.close()
        # Another pod: another host key, another entry.
        async with rig.agent():
            carrier = await rig.dial(ada)
            assert rig.posts() == 2
            await carrier.close()


async def test_an_entry_that_was_over_is_made_anew_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.agent(), rig.developer() as ada:
        carrier = await rig.dial(ada)
        carrier.abort("the laptop sleeps")
        await carrier.lost()
        rig.cluster.ahead = timedelta(seconds=LIFE_SECONDS + 60)
        with pytest.raises(RemoteError, match="does not let your key in"):
            await rig.dial(ada)  # made less than a minute ago, by this machine's clock: no second one
        assert rig.posts() == 1
        monkeypatch.setattr(joining, "RENEW_SECONDS", 0.0)
        carrier = await rig.dial(ada)
        assert rig.posts() == 2
        await carrier.close()


async def test_an_agent_that_can_look_up_no_key_is_not_flooded_with_them(rig: Rig) -> None:
    rig.cluster.denied.add((AGENTS, "get", "configmaps"))
    rig.pod()
    async with server.serve(rig.folder / rig.uid, 0) as rig.port, rig.developer() as ada:
        key = asyncssh.read_private_key(rig.folder / rig.uid / "host_key").export_public_key().decode()
        rig.cluster.put("configmaps", {"metadata": {"name": AGENT}, "data": {HOST_KEY: key, POD_UID: rig.uid}})
        for _ in range(5):
            with pytest.raises(RemoteError, match="does not let your key in"):
                await rig.dial(ada)
        assert len(rig.entries()) == 1


# --- Who pretends to be the agent ---------------------------------------------------------------------------------


class Impostor(asyncssh.SSHServer):
    """Lets everybody in, and notes what it is told."""

    told: list[str]

    def begin_auth(self, username: str) -> bool:
        self.told.append(username)
        return False


async def test_who_answers_with_another_host_key_learns_neither_a_name_nor_a_key(rig: Rig) -> None:
    """Eve reads all that any Role lets her read, and stands where the agent's port is."""
    told: list[str] = []
    seen = type("Seen", (Impostor,), {"told": told})
    async with rig.agent(), rig.developer("eve@here") as eve:
        # What she may read of the agent: nothing of it opens or proves anything.
        readable = [
            await eve.api.get(f"/api/v1/namespaces/shop/configmaps/{each}") for each in rig.cluster.names("configmaps")
        ]
        assert readable and "PRIVATE" not in str(readable)
        key = asyncssh.generate_private_key("ssh-ed25519")
        async with asyncssh.listen("127.0.0.1", 0, server_factory=seen, server_host_keys=[key]) as fake:
            rig.port = fake.get_port()
            async with rig.developer() as ada:
                with pytest.raises(RemoteError, match="another host key than the agent has published"):
                    await rig.dial(ada)
        assert told == []


async def test_a_host_key_of_another_pod_is_not_taken(rig: Rig) -> None:
    """That of an older pod, or of one that says it is this one's: the new pod's own is waited for."""
    async with rig.agent(publishes=False), rig.developer() as ada:
        eves = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        rig.cluster.put("configmaps", {"metadata": {"name": AGENT}, "data": {HOST_KEY: eves, POD_UID: "older"}})
        dialing = asyncio.create_task(rig.dial(ada))
        reads = len(rig.cluster.asked)
        await until(lambda: len(rig.cluster.asked) > reads + 3)
        assert not dialing.done()
        await rig.publish()
        carrier = await dialing
        await carrier.close()


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
async def test_no_developer_writes_the_agents_host_key(rig: Rig, method: str) -> None:
    async with rig.agent(), rig.developer("eve@here") as eve:
        maps = "/api/v1/namespaces/shop/configmaps"
        eves = {"metadata": {"name": AGENT}, "data": {HOST_KEY: "eve's", POD_UID: rig.uid}}
        with pytest.raises(RemoteError) as refused:
            await eve.api.request(method, maps if method == "POST" else f"{maps}/{AGENT}", eves)
        assert getattr(refused.value, "status", 0) in (403, 409)
        assert host_key_of(await eve.joining.published(), rig.uid).startswith("ssh-ed25519 ")


# --- Versions, and rights that are missing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("software", "words"), [("devloop_3", "the agent is older"), (f"devloop_{PROTOCOL + 1}", "the agent is newer")]
)
async def test_an_agent_of_another_version_that_publishes_nothing_is_told_of(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, software: str, words: str
) -> None:
    monkeypatch.setattr(server, "SOFTWARE", software)
    monkeypatch.setattr(joining, "DOUBT_SECONDS", 0.1)
    async with rig.agent(publishes=False), rig.developer() as ada:
        with pytest.raises(AgentRefusedError, match=words) as refused:
            await rig.dial(ada)
        assert refused.value.hint


async def test_an_agent_that_never_publishes_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "DOUBT_SECONDS", 0.1)
    monkeypatch.setattr(joining, "PUBLISH_SECONDS", 0.5)
    async with rig.agent(publishes=False), rig.developer() as ada:
        with pytest.raises(AgentRefusedError, match="not published its host key") as refused:
            await rig.dial(ada)
        assert "kubectl logs" in str(refused.value.hint)


async def test_an_agent_that_ends_again_and_again_says_why(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "LOOK_SECONDS", (0.01, 0.05))
    async with rig.agent(publishes=False), rig.developer() as ada:
        status: Document = {
            "name": "agent",
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        }
        status["lastState"] = {"terminated": {"message": "x\ndevloop agent: may not publish (role-agent.yaml)\n"}}
        dialing = asyncio.create_task(rig.dial(ada))
        await until(lambda: rig.entries())
        with rig.cluster.lock:
            rig.cluster.objects["pods", AGENT]["status"] = {"containerStatuses": [status]}
        with pytest.raises(RemoteError, match=r"may not publish \(role-agent\.yaml\)"):
            await dialing


@pytest.mark.parametrize(("verb", "words"), [("create", "putting your key"), ("get", "reading the agent's host key")])
async def test_who_may_not_join_is_told_which_right_is_missing(rig: Rig, verb: str, words: str) -> None:
    rig.cluster.denied.add((DEVELOPER, verb, "configmaps"))
    async with rig.agent(), rig.developer() as ada:
        with pytest.raises(AgentRefusedError, match=words):
            await rig.dial(ada)


async def test_a_pod_that_was_made_for_nothing_is_removed(rig: Rig) -> None:
    rig.cluster.denied.add((DEVELOPER, "create", "configmaps"))
    async with rig.developer() as ada:

        async def started(tell: Any) -> Document:
            with rig.cluster.lock:
                return rig.cluster.objects["pods", AGENT] | {"status": RUNNING}

        rig.patch.setattr(ada._pod, "started", started)
        with pytest.raises(AgentRefusedError, match="putting your key"):
            await ada.provide(rig.told.append)
    assert rig.cluster.names("pods") == []


async def test_of_a_flood_of_keys_few_are_read_to_be_shown(rig: Rig) -> None:
    async with rig.agent(), rig.developer() as ada:
        for number in range(kept.LISTED + 50):
            rig.cluster.put("configmaps", entry(b"eve", f"{number:016x}", f"eve{number}", AGENT, rig.uid))
        found = await standing(ada.api)
        assert found is not None and found.clients is not None
        assert len(found.clients) == kept.LISTED

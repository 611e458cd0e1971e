"""`devloop agent` with a developer's rights, and an agent that an administrator has installed beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devloop.agent.keys import HOST_KEY, POD_UID
from devloop.agent.objects import KEPT
from devloop.remote.kubernetes.agent import KubernetesLink
from devloop.remote.kubernetes.kubeconfig import Kubeconfig

from . import kit
from .command import Cli, kubectl
from .conftest import Namespace, Target
from .kit import ApiClient, client
from .kube import access
from .test_link_contract import connected, run_target
from .test_link_life import AGENT, agent_uid, says_bye, take_away

GROUP = "- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: devloop-developers}"


@pytest.fixture
def devloop(namespace: Namespace, tmp_path: Path) -> Cli:
    return Cli(tmp_path / "ada", namespace.developer)


async def there(admin: ApiClient, namespace: str) -> list[str]:
    """The agent's pods, its ConfigMap and developers' keys; what is on its way out has gone."""
    core = client.CoreV1Api(admin)
    found = [
        *(await core.list_namespaced_pod(namespace)).items,
        *(await core.list_namespaced_config_map(namespace)).items,
        *(await core.list_namespaced_secret(namespace)).items,
    ]
    names = [each.metadata.name for each in found if not each.metadata.deletion_timestamp]
    return [each for each in names if each.startswith(AGENT)]


async def test_what_install_makes_stays_until_uninstall(
    admin: ApiClient, namespace: Namespace, devloop: Cli, tmp_path: Path
) -> None:
    assert "no agent" in (await devloop("agent", "status")).stdout
    assert (await devloop("agent", "status", "--json")).json["agent"] is None
    assert "the agent runs" in (await devloop("agent", "install")).stdout
    assert "was there already" in (await devloop("agent", "install")).stdout
    agent = (await devloop("agent", "status", "--json")).json["agent"]
    assert agent["running"] and agent["installed"] and agent["linger_seconds"] == 0
    assert agent["image"] == "devloop.test/agent:1"
    assert "@" in agent["made_by"]
    assert agent["clients"] == []
    uid = await agent_uid(admin, namespace.name)
    async with connected(namespace.other_developer, tmp_path / "ben", "agent"):
        assert await agent_uid(admin, namespace.name) == uid
        text = (await devloop("agent", "status")).stdout
        assert "SHA256:" in text and "stays until it is removed" in text
    # Its last client has gone, and it is there; what the client had put beside it is not.
    assert await agent_uid(admin, namespace.name) == uid
    assert (await devloop("agent", "status", "--json")).json["agent"]["clients"] == []
    assert "pod devloop-agent removed" in (await devloop("agent", "uninstall")).stdout
    await kit.eventually(lambda: there(admin, namespace.name), [])
    assert "nothing was installed" in (await devloop("agent", "uninstall")).stdout


async def test_an_administrators_agent_serves_those_who_may_create_nothing(
    cluster: Target, admin: ApiClient, namespace: Namespace, devloop: Cli, tmp_path: Path
) -> None:
    await run_target(admin, namespace.name)
    text = (await devloop("agent", "manifest")).stdout
    # The administrator names the developers, as the file says.
    people = [f"ada-{namespace.name}", f"ben-{namespace.name}"]
    token = cluster.own is None
    subjects = [json.dumps(access.subject(each, namespace.name, token=token)) for each in people]
    assert GROUP in text
    text = text.replace(GROUP, "\n".join(f"- {each}" for each in subjects))
    apply = ("apply", "-n", namespace.name, "-f", "-")
    kubectl(cluster, *apply, text=text)
    # It becomes ready by itself: nobody has to come first.
    await kit.until(
        client.AppsV1Api(admin).list_namespaced_deployment,
        namespace.name,
        ready=lambda each: each.status.ready_replicas == 1,
    )
    core = client.CoreV1Api(admin)
    before = (await core.read_namespaced_config_map(AGENT, namespace.name)).data
    assert before
    kubectl(cluster, *apply, text=text)
    assert (await core.read_namespaced_config_map(AGENT, namespace.name)).data == before, "applied anew, the same"
    await take_away(admin, namespace.name, "pods", "create", "delete")
    await take_away(admin, namespace.name, "secrets", "get", "list", "watch")
    for developer, name in ((namespace.developer, "ada"), (namespace.other_developer, "ben")):
        async with connected(developer, tmp_path / name, "agent") as link:
            assert (link.state.kind, link.state.notes) == ("agent", ())
            assert await says_bye(link)
            status = (await devloop("agent", "status", "--json")).json["agent"]
            assert len(status["clients"]) == 1
    assert status["made_by"] == "Deployment devloop-agent"
    assert status["running"] and status["installed"]
    # Somebody else's: not for `uninstall`, which says whose.
    assert "kubectl delete" in (await devloop("agent", "uninstall", code=1)).stderr
    kubectl(cluster, "delete", "-n", namespace.name, "-f", "-", text=text)
    await kit.eventually(lambda: there(admin, namespace.name), [])


async def test_an_agent_in_use_is_told_of_and_left_alone(
    admin: ApiClient, namespace: Namespace, devloop: Cli, tmp_path: Path
) -> None:
    async with connected(namespace.other_developer, tmp_path / "ben", "agent"):
        uid = await agent_uid(admin, namespace.name)
        agent = (await devloop("agent", "status", "--json")).json["agent"]
        assert not agent["installed"] and agent["linger_seconds"] == 60
        assert [each["name"] for each in agent["clients"]] == [agent["made_by"]]
        assert agent["made_by"] in (await devloop("agent", "install", code=1)).stderr
        assert "goes with its last client" in (await devloop("agent", "uninstall", code=1)).stderr
        assert await agent_uid(admin, namespace.name) == uid


async def test_a_refusal_says_what_and_leaves_nothing(admin: ApiClient, namespace: Namespace, devloop: Cli) -> None:
    refused = await devloop("agent", "install", "--image", "devloop.test/no-such-agent:1", code=3)
    assert "image" in refused.stderr and "--image" in refused.stderr
    await kit.eventually(lambda: there(admin, namespace.name), [])
    # A namespace where this developer may do nothing.
    assert "forbidden" in (await devloop("agent", "status", "-n", "default", code=3)).stderr
    await take_away(admin, namespace.name, "pods", "create")
    refused = await devloop("agent", "install", code=3)
    assert "pods" in refused.stderr and "devloop agent manifest" in refused.stderr
    assert await there(admin, namespace.name) == []
    nowhere = await devloop("agent", "status", "--context", "no-such-context", code=3)
    assert 'no context "no-such-context"' in nowhere.stderr


async def test_the_projects_remote_is_meant_and_options_say_otherwise(namespace: Namespace, tmp_path: Path) -> None:
    devloop = Cli(tmp_path / "ada", tmp_path / "no-kubeconfig")
    devloop.folder.mkdir()
    project = devloop.folder / "devloop.toml"
    remote = f'[remote]\nkubeconfig = "{namespace.developer}"\nagent_image = "registry.test/agent:7"\n'
    project.write_text(f'[services.web]\ncommand = "true"\n{remote}')
    assert "nobody has agreed to it" in (await devloop("agent", "status", code=2)).stderr
    await devloop("trust")
    assert namespace.name in (await devloop("agent", "status", "--json")).json["where"]
    assert (await devloop("agent", "status", "-n", "default", code=3)).stderr.count("default")
    manifest = (await devloop("agent", "manifest", "-n", "team")).stdout
    assert "image: registry.test/agent:7" in manifest
    assert "namespace: team" in manifest
    assert "image: own:1" in (await devloop("agent", "manifest", "--image", "own:1")).stdout
    project.write_text('[services.web]\ncommand = "true"\n[remote]\nhost = "bastion"\n')
    await devloop("trust")
    assert "of kind ssh" in (await devloop("agent", "status", code=2)).stderr
    await devloop("agent", "status", "--kubeconfig", str(namespace.developer))


@pytest.mark.parametrize("reason", ["image", "right"])
async def test_where_there_can_be_no_agent_the_link_leaves_nothing_of_it(
    admin: ApiClient, namespace: Namespace, tmp_path: Path, reason: str
) -> None:
    await run_target(admin, namespace.name)
    image = "devloop.test/agent:1"
    if reason == "right":
        await take_away(admin, namespace.name, "pods", "create")
    else:
        image = "devloop.test/no-such-agent:1"
    link = KubernetesLink(Kubeconfig(namespace.developer), key_file=tmp_path / "key", image=image)
    link.start()
    try:
        await link.ready(60)
        assert link.state.kind == "portforward"
        assert ("image" if reason == "image" else "create") in link.state.notes[0]
        assert await says_bye(link)
        await kit.eventually(lambda: there(admin, namespace.name), [])
    finally:
        await link.close()


async def test_a_config_map_that_was_installed_outlives_an_agent_that_was_not(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    core = client.CoreV1Api(admin)
    # As `kubectl apply` makes it: empty. Whichever agent starts writes its host key into it.
    metadata = client.V1ObjectMeta(name=AGENT, annotations={KEPT: "true"})
    await core.create_namespaced_config_map(namespace.name, client.V1ConfigMap(metadata=metadata))
    async with connected(namespace.developer, tmp_path / "ada", "agent"):
        assert set((await core.read_namespaced_config_map(AGENT, namespace.name)).data) == {HOST_KEY, POD_UID}
    await kit.eventually(lambda: there(admin, namespace.name), [AGENT])
    async with connected(namespace.developer, tmp_path / "ada", "agent"):
        pass

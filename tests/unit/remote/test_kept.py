"""The agent that stays: what an administrator applies, and what is read from one that is there."""

from __future__ import annotations

from typing import Any

import asyncssh
import yaml

from devloop.agent import keys
from devloop.agent.objects import KEPT
from devloop.agent.runner import DATA_BYTES
from devloop.remote.kubernetes.install import SELECTOR, pod_manifest
from devloop.remote.kubernetes.kept import clients_of, linger_of, manifests, owner, roles


def objects(text: str) -> dict[tuple[str, str], Any]:
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text)}


def test_the_manifest_has_all_that_an_agent_needs_and_no_secret() -> None:
    text = manifests("registry/agent:2")
    made = objects(text)
    kinds = {"Role", "RoleBinding", "ServiceAccount", "ConfigMap", "NetworkPolicy", "Deployment"}
    assert {kind for kind, _ in made} == kinds
    assert "PRIVATE" not in text
    # `kubectl apply` anew leaves alone what the manifest does not speak of.
    assert not {"data", "binaryData", "immutable"} & set(made["ConfigMap", "devloop-agent"])
    assert objects(roles()).items() <= made.items()
    assert all("namespace" not in each["metadata"] for each in made.values())
    assert all(each["metadata"]["namespace"] == "team" for each in objects(manifests("x", "team")).values())


def test_the_deployments_pod_is_the_agents_own() -> None:
    deployment = objects(manifests("registry/agent:2"))["Deployment", "devloop-agent"]
    own = pod_manifest("registry/agent:2", 0)
    template = deployment["spec"]["template"]
    assert template["spec"] == own["spec"]
    assert template["metadata"]["labels"] == own["metadata"]["labels"]
    # Some meshes are kept out by an annotation.
    assert own["metadata"]["annotations"].items() <= template["metadata"]["annotations"].items()
    assert template["metadata"]["annotations"][KEPT] == "true"
    key, _, value = SELECTOR.partition("=")
    assert deployment["spec"]["selector"]["matchLabels"] == {key: value}
    assert template["metadata"]["labels"][key] == value


def test_envoy_has_limits_of_its_own_and_no_right_more_than_the_agent() -> None:
    pod = pod_manifest("registry/agent:2", 0)
    agent, beside = pod["spec"]["containers"]
    assert (agent["name"], beside["name"]) == ("agent", "envoy")
    for each in (agent, beside):
        assert each["image"] == "registry/agent:2"
        assert each["resources"]["limits"]["memory"] and each["resources"]["requests"].keys() == {"cpu", "memory"}
        assert each["securityContext"] == agent["securityContext"]
    # Envoy ends by itself before the kernel ends its container, which the kubelet would start ever later.
    assert int(beside["resources"]["limits"]["memory"].removesuffix("Mi")) << 20 > DATA_BYTES + (64 << 20)
    env = [{each["name"]: each.get("value") for each in one["env"]} for one in (agent, beside)]
    for name in ("DEVLOOP_AGENT_ENVOY", "DEVLOOP_AGENT_STATE"):
        assert env[0][name] == env[1][name]
    # It has no key: neither the host key, nor the service account's.
    mounts = {each["mountPath"]: each["name"] for each in beside["volumeMounts"]}
    assert mounts == {"/tmp": "tmp", "/var/run/secrets/kubernetes.io/serviceaccount": "no-token"}
    [nothing] = [each for each in pod["spec"]["volumes"] if each["name"] == "no-token"]
    assert "emptyDir" in nothing


def test_the_private_half_of_the_host_key_is_in_memory_and_of_one_container() -> None:
    spec = pod_manifest("x", 0)["spec"]
    [volume] = [each for each in spec["volumes"] if each["name"] == "key"]
    assert volume["emptyDir"]["medium"] == "Memory"
    places = {
        container["name"]: mount["mountPath"]
        for container in spec["containers"]
        for mount in container.get("volumeMounts", ())
        if mount["name"] == "key"
    }
    [own] = [each for each in spec["containers"] if each["name"] == "agent"]
    env = {each["name"]: each for each in own["env"]}
    assert places == {"agent": env["DEVLOOP_AGENT_KEYS"]["value"]}
    assert env["DEVLOOP_AGENT_POD_UID"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert not any("secret" in each for each in spec["volumes"])


def test_who_has_a_key_is_read_from_the_names() -> None:
    ada, ben = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    suffixes = iter(f"{number:016x}" for number in range(10))

    def entry(key: asyncssh.SSHKey, who: str) -> dict[str, Any]:
        return keys.entry(key.public_data, next(suffixes), who, "devloop-agent", "uid")

    strange: list[dict[str, Any]] = [{}, {"metadata": {"name": "x"}}, {"metadata": {"name": "devloop-agent-key-x-y"}}]
    nameless = entry(ben, "")
    del nameless["metadata"]["annotations"]
    found = clients_of(
        [entry(ben, "ben@desk top"), entry(ada, "ada@laptop"), entry(ada, "ada@laptop"), *strange, nameless]
    )
    assert [(each.name, each.fingerprint) for each in found] == [
        ("ada@laptop", ada.get_fingerprint()),
        ("ben@desk top", ben.get_fingerprint()),
        ("unknown", ben.get_fingerprint()),
    ]
    assert clients_of([]) == ()


def test_whose_an_agent_is() -> None:
    pod = pod_manifest("x", 30)
    assert owner(pod) == ""
    assert linger_of(pod) == 30
    pod["metadata"]["labels"]["pod-template-hash"] = "abc12"
    pod["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "devloop-agent-abc12", "controller": True}]
    assert owner(pod) == "Deployment devloop-agent"
    pod["metadata"]["ownerReferences"] = [{"kind": "StatefulSet", "name": "x", "controller": True}]
    assert owner(pod) == "StatefulSet x"

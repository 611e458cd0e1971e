"""The agent that stays: what an administrator applies, and what is read from one that is there."""

from __future__ import annotations

import base64
import io
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from devloop.agent import presence
from devloop.agent.objects import KEPT
from devloop.agent.runner import DATA_BYTES
from devloop.remote.kubernetes.install import SELECTOR, Identity, pod_manifest, secret_manifest
from devloop.remote.kubernetes.kept import keys, linger_of, manifests, owner, roles


def objects(text: str) -> dict[tuple[str, str], Any]:
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text)}


def test_the_manifest_has_all_that_an_agent_needs_and_no_secret() -> None:
    text = manifests("registry/agent:2")
    made = objects(text)
    kinds = {"Role", "RoleBinding", "ServiceAccount", "Secret", "NetworkPolicy", "Deployment"}
    assert {kind for kind, _ in made} == kinds
    assert "PRIVATE" not in text
    secret = made["Secret", "devloop-agent"]
    # `kubectl apply` anew leaves alone what the manifest does not speak of.
    assert not {"data", "stringData"} & set(secret)
    assert objects(roles()).items() <= made.items()
    assert all("namespace" not in each["metadata"] for each in made.values())
    assert all(each["metadata"]["namespace"] == "team" for each in objects(manifests("x", "team")).values())


def test_the_deployments_pod_is_the_agents_own() -> None:
    deployment = objects(manifests("registry/agent:2"))["Deployment", "devloop-agent"]
    own = pod_manifest("registry/agent:2", 0)
    template = deployment["spec"]["template"]
    assert {key: value for key, value in template["spec"].items() if key != "initContainers"} == own["spec"]
    assert template["metadata"]["labels"] == own["metadata"]["labels"]
    # Some meshes are kept out by an annotation.
    assert own["metadata"]["annotations"].items() <= template["metadata"]["annotations"].items()
    assert template["metadata"]["annotations"][KEPT] == "true"
    key, _, value = SELECTOR.partition("=")
    assert deployment["spec"]["selector"]["matchLabels"] == {key: value}
    assert template["metadata"]["labels"][key] == value
    for each in template["spec"]["initContainers"]:
        # `restricted` looks at each container.
        assert each["securityContext"] == own["spec"]["containers"][0]["securityContext"]
        assert each["image"] == "registry/agent:2"


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
    env = [{each["name"]: each["value"] for each in one["env"]} for one in (agent, beside)]
    for name in ("DEVLOOP_AGENT_ENVOY", "DEVLOOP_AGENT_STATE"):
        assert env[0][name] == env[1][name]
    # It has no key: neither the Secret's, nor the service account's.
    mounts = {each["mountPath"]: each["name"] for each in beside["volumeMounts"]}
    assert mounts == {"/tmp": "tmp", "/var/run/secrets/kubernetes.io/serviceaccount": "no-token"}
    [nothing] = [each for each in pod["spec"]["volumes"] if each["name"] == "no-token"]
    assert "emptyDir" in nothing


class FakeApi:
    """The agent's way to its Secret; `refused` is an HTTP status."""

    def __init__(self, data: dict[str, str] | None, refused: int = 0) -> None:
        self.secret: dict[str, Any] = {"metadata": {"resourceVersion": "7"}} | ({"data": data} if data else {})
        self.refused = refused
        self.put: list[dict[str, Any]] = []

    def request(self, method: str, kind: str, name: str, body: object = None) -> dict[str, Any]:
        assert (kind, name) == ("secrets", "devloop-agent")
        if self.refused and (method == "PUT" or self.refused == 403):
            raise urllib.error.HTTPError("", self.refused, "refused", Message(), io.BytesIO())
        if method == "PUT":
            assert isinstance(body, dict)
            self.put.append(body)
        return {**self.secret}


@pytest.fixture
def script() -> str:
    """What makes the host key, in the Deployment's first container."""
    deployment = objects(manifests("x"))["Deployment", "devloop-agent"]
    first = deployment["spec"]["template"]["spec"]["initContainers"][0]
    assert first["command"][:2] == ["python3", "-c"]
    text: str = first["command"][2]
    return text


def run(script: str, api: FakeApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "ClusterApi", lambda: api)
    monkeypatch.setenv("DEVLOOP_AGENT_KEYS", str(folder))
    exec(compile(script, "script", "exec"), {})


def test_the_host_key_is_made_once(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi({"ada.pub": "a2V5"})
    run(script, api, tmp_path, monkeypatch)
    [put] = api.put
    assert put["metadata"]["resourceVersion"] == "7"
    assert put["data"]["ada.pub"] == "a2V5"
    key = asyncssh.import_private_key(base64.b64decode(put["data"]["host_key"]))
    assert key.get_algorithm() == "ssh-ed25519"
    there = FakeApi({"host_key": "eA=="})
    run(script, there, tmp_path, monkeypatch)
    assert there.put == []
    (tmp_path / "host_key").write_text("x")
    unasked = FakeApi(None, 403)
    with pytest.raises(SystemExit) as ended:
        run(script, unasked, tmp_path, monkeypatch)
    assert not ended.value.code


def test_who_is_slower_tries_again_and_who_may_not_leaves_it_to_others(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(script, FakeApi(None, 409), tmp_path, monkeypatch)
    assert ended.value.code
    run(script, FakeApi(None, 403), tmp_path, monkeypatch)
    assert "first developer" in capsys.readouterr().out


def test_who_has_a_key_is_read_from_the_secret() -> None:
    ada, ben = (Identity(asyncssh.generate_private_key("ssh-ed25519"), name) for name in ("ada@laptop", "ben@desk top"))
    secret = secret_manifest(ben, ada)
    data = {name: base64.b64encode(value.encode()).decode() for name, value in secret["stringData"].items()}
    data["authorized_keys"] = base64.b64encode(b"# by hand\nssh-ed25519 not-base64 cleo\n\n").decode()
    found = keys({"data": data})
    assert [(each.name, each.fingerprint) for each in found] == [
        ("ada@laptop", ada.key.get_fingerprint()),
        ("ben@desk top", ben.key.get_fingerprint()),
        ("cleo", "no key"),
    ]
    assert keys({}) == ()


def test_whose_an_agent_is() -> None:
    pod = pod_manifest("x", 30)
    assert owner(pod) == ""
    assert linger_of(pod) == 30
    pod["metadata"]["labels"]["pod-template-hash"] = "abc12"
    pod["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "devloop-agent-abc12", "controller": True}]
    assert owner(pod) == "Deployment devloop-agent"
    pod["metadata"]["ownerReferences"] = [{"kind": "StatefulSet", "name": "x", "controller": True}]
    assert owner(pod) == "StatefulSet x"

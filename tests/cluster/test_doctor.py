"""`devloop doctor` at a cluster: what it says of the API server, of rights, and of the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .command import Cli
from .conftest import Namespace
from .kit import ApiClient
from .kube.gate import Gate
from .test_link_life import take_away


@pytest.fixture
def devloop(namespace: Namespace, tmp_path: Path) -> Cli:
    return Cli(tmp_path / "ada", namespace.developer)


def project(devloop: Cli, remote: str = "", more: str = "") -> None:
    devloop.folder.mkdir(exist_ok=True)
    text = f'[services.web]\ncommand = "true"\n{more}\n[remote]\nkind = "kubernetes"\n{remote}\n'
    (devloop.folder / "devloop.toml").write_text(text)


def of(findings: Any, what: str) -> list[Any]:
    return [each for each in findings if each["what"] == what]


async def test_with_the_role_all_is_well(namespace: Namespace, devloop: Cli) -> None:
    project(devloop)
    findings = (await devloop("doctor", "--json")).json
    assert [each["text"] for each in findings if each["level"] == "error"] == []
    [cluster] = of(findings, "cluster")
    for words in (namespace.name, "Kubernetes v1.", f"ada-{namespace.name}"):
        assert words in cluster["text"]
    assert [each["level"] for each in of(findings, "network")]
    assert "none is there" in of(findings, "agent")[0]["text"]
    rights = of(findings, "right")
    assert len(rights) > 8
    [roles] = of(findings, "roles")
    assert (roles["level"], roles["text"]) == (
        "ok",
        "you have devloop-link, devloop-ingest, devloop-attach and devloop-self-service",
    )
    assert {each["level"] for each in rights} == {"ok"}
    text = (await devloop("doctor")).stdout
    assert "✓ right" in text and "Connect to pods" in text


async def test_a_namespace_without_rights_names_each_and_what_it_costs(devloop: Cli) -> None:
    project(devloop, 'namespace = "default"')
    findings = (await devloop("doctor", "--json", code=3)).json
    rights = of(findings, "right")
    assert all(each["missing"] and each["hint"] for each in rights)
    by_text = {each["text"].split(":")[0]: each for each in rights}
    assert by_text["Connect to pods"]["level"] == "error"
    assert by_text["Connect to pods"]["hint"] == "no connection to the cluster at all"
    assert "create pods/portforward" in by_text["Connect to pods"]["missing"]
    assert by_text["Stop a workload"]["level"] == "warning"
    assert "forbidden" in of(findings, "agent")[0]["text"]
    [roles] = of(findings, "roles")
    assert "attach needs devloop-attach; " in roles["text"] and "you have none of devloop's Roles" in roles["text"]
    assert "devloop agent manifest --role self-service --role-only" in roles["hint"]
    text = (await devloop("doctor", code=3)).stdout
    assert "✗ right" in text and "get, create pods/portforward" in text


async def test_rights_that_the_way_of_the_link_does_not_need_are_none_that_are_missing(
    admin: ApiClient, namespace: Namespace, devloop: Cli
) -> None:
    await devloop("agent", "install")
    await take_away(admin, namespace.name, "pods", "create")
    project(devloop)

    async def making() -> Any:
        findings = (await devloop("doctor", "--json")).json
        return next(each for each in of(findings, "right") if each["text"].startswith("Make an agent"))

    found = await making()
    assert (found["level"], found["missing"]) == ("ok", ["create pods"])
    assert "to stay" in found["hint"]
    await devloop("agent", "uninstall")
    assert (await making())["level"] == "warning"
    project(devloop, 'link = "portforward"')
    assert (await making())["level"] == "ok"
    # Where the project insists on the agent, there is no link without.
    project(devloop, 'link = "agent"')
    findings = (await devloop("doctor", "--json", code=3)).json
    assert [each["missing"] for each in of(findings, "right") if each["level"] == "error"] == [["create pods"]]


async def test_an_api_server_that_does_not_answer(
    namespace: Namespace, devloop: Cli, gate: Gate, behind_gate: Any
) -> None:
    project(devloop, f'kubeconfig = "{behind_gate(namespace.developer)}"')
    await devloop("trust")
    gate.refuse()
    findings = (await devloop("doctor", "--json", code=3)).json
    assert "can't be reached" in of(findings, "cluster")[0]["text"]
    assert "Is the cluster reachable?" in (await devloop("list", code=3)).stderr
    assert "can't be reached" in (await devloop("agent", "status", code=3)).stderr
    gate.open()
    project(devloop, 'kubeconfig = "nowhere"')
    await devloop("trust")
    findings = (await devloop("doctor", "--json", code=3)).json
    assert "there is no kubeconfig" in of(findings, "cluster")[0]["text"]

"""What `devloop doctor` makes of what it finds, and what it advises."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from devloop.commands import remote_findings
from devloop.commands.remote_findings import network
from devloop.config.model import LinkWay, Network
from devloop.errors import ServiceError
from devloop.net import check
from devloop.net.check import Capabilities
from devloop.remote.kubernetes import kept, rights
from devloop.remote.kubernetes.kept import Standing
from devloop.remote.kubernetes.rights import NEEDS, Finding
from devloop.remote.roles import Role


def answer(monkeypatch: pytest.MonkeyPatch, found: Capabilities | ServiceError) -> None:
    async def fake() -> Any:
        if isinstance(found, ServiceError):
            raise found
        return found

    monkeypatch.setattr(check, "check", fake)


def test_namespaces_where_they_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, Capabilities(user_namespace=True, ipv6=True, low_ports=True))
    for wanted in (None, Network.NAMESPACE):
        found = network(wanted).finding
        assert (found.level, found.text) == ("ok", "a namespace for each service, with IPv6 and ports below 1024")
    answer(monkeypatch, Capabilities(user_namespace=True, ipv6=False, low_ports=True))
    assert (network(None).finding.level, network(None).finding.text) == (
        "warning",
        "a namespace for each service; no IPv6",
    )


def test_without_them_it_is_ports_unless_the_project_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, ServiceError("AppArmor keeps them", hint="write a profile"))
    found = network(None).finding
    assert (found.level, found.hint) == ("warning", "write a profile")
    assert found.text == "ports on localhost, as AppArmor keeps them"
    found = network(Network.NAMESPACE).finding
    assert (found.level, found.text, found.hint) == ("error", "AppArmor keeps them", "write a profile")
    assert network(Network.PORTS).finding.level == "ok"


def test_the_hosts_file_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_findings.os, "geteuid", lambda: 0)
    assert network(Network.HOSTS).finding.level == "ok"
    monkeypatch.setattr(remote_findings.os, "geteuid", lambda: 1000)
    assert network(Network.HOSTS).finding.level == "error"


def test_other_systems_have_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_findings.sys, "platform", "darwin")
    assert (network(None).finding.level, network(None).finding.text[:5]) == ("ok", "ports")


@pytest.mark.parametrize("installed", [True, False])
async def test_the_roles_are_said_in_a_line_and_then_each_right(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    async def review(api: object) -> list[Finding]:
        return [Finding(each, () if each.role is Role.LINK else ("get x",)) for each in NEEDS]

    async def standing(api: object) -> Standing | None:
        return Standing("devloop-agent-x", "i", True, "running", "", "", True, 0, None) if installed else None

    class Fake:
        async def get(self, path: str) -> dict[str, str]:
            return {"gitVersion": "v1.36"}

        async def request(self, *asked: object) -> dict[str, Any]:
            return {"status": {"userInfo": {"username": "ada"}}}

    monkeypatch.setattr(rights, "review", review)
    monkeypatch.setattr(kept, "standing", standing)
    chosen: Any = SimpleNamespace(chosen=SimpleNamespace(context="c", namespace="n"))
    api: Any = Fake()
    remote: Any = SimpleNamespace(link=LinkWay.AUTO)
    found = await remote_findings._at(api, chosen, remote)
    [at] = [number for number, each in enumerate(found) if each.what == "roles"]
    assert all(each.what == "right" for each in found[at + 1 :]) and len(found) == at + 1 + len(NEEDS)
    own = "" if installed else "; an agent of one's own needs devloop-self-service"
    assert found[at].text == (
        "variables and files of workloads needs devloop-ingest; "
        f"attach needs devloop-attach{own}; you have devloop-link"
    )
    assert f"--role {'attach' if installed else 'self-service'} --role-only" in found[at].hint
    assert "(devloop-attach)" in next(each.text for each in found if each.text.startswith("Redirect"))

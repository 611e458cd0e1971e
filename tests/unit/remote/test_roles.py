"""Which Role a refusal names, which Roles a developer has, and what is printed of them for an administrator."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from devloop.agent.destinations import DENIED
from devloop.attach.policies import Peer, Policies
from devloop.commands.list import Found, notes
from devloop.remote.catalog import Catalog, survey
from devloop.remote.kubernetes.kept import manifests, roles
from devloop.remote.kubernetes.rights import NEEDS, Finding, Roles
from devloop.remote.roles import FOR_WHAT, Role, ask_for, hint, of_refusal
from devloop.remote.workload.cluster import AbsentError
from devloop.remote.workload.find import find
from devloop.remote.workload.inventory import Inventory
from devloop.remote.workload.model import Absence


def refusal(verb: str, resource: str, group: str = "", name: str = "") -> str:
    """As an API server words it."""
    what = resource.partition("/")[0] + (f".{group}" if group else "") + (f' "{name}"' if name else "")
    where = 'in the namespace "shop"'
    return (
        f'GET /api: {what} is forbidden: User "ada" cannot {verb} resource "{resource}" in API group "{group}" {where}'
    )


@pytest.mark.parametrize(
    ("verb", "resource", "group", "name", "role"),
    [
        ("list", "pods", "", "", Role.LINK),
        ("create", "pods/portforward", "", "devloop-agent", Role.LINK),
        ("create", "configmaps", "", "", Role.LINK),
        ("get", "configmaps", "", "devloop-agent", Role.LINK),
        ("get", "configmaps", "", "api-config", Role.INGEST),
        ("list", "deployments", "apps", "", Role.INGEST),
        ("get", "secrets", "", "db", Role.INGEST),
        ("create", "serviceaccounts/token", "", "default", Role.ATTACH),
        ("create", "pods/exec", "", "web-0", Role.ATTACH),
        ("patch", "pods/ephemeralcontainers", "", "web-0", Role.ATTACH),
        ("patch", "services", "", "web", Role.ATTACH),
        ("create", "leases", "coordination.k8s.io", "", Role.ATTACH),
        ("update", "deployments/scale", "apps", "web", Role.ATTACH),
        ("create", "pods", "", "", Role.SELF_SERVICE),
        ("delete", "deployments", "apps", "web", None),
        ("list", "nodes", "", "", None),
        ("get", "leases", "elsewhere.example.com", "", None),
    ],
)
def test_a_refusal_names_the_smallest_role_that_allows_it(
    verb: str, resource: str, group: str, name: str, role: Role | None
) -> None:
    said = refusal(verb, resource, group, name)
    assert of_refusal(said) is role
    assert hint(said) == (ask_for(role) if role else None)
    absent = AbsentError(Absence.FORBIDDEN, said)
    assert absent.hint == hint(said) and AbsentError(Absence.MISSING, said).hint is None


def test_words_of_webhooks_and_pod_security_name_no_role() -> None:
    assert hint('pods "devloop-agent" is forbidden: violates PodSecurity "restricted:latest": privileged') is None
    assert hint('admission webhook "policy.example.com" denied the request: no') is None


def found(*mine: Role, but: str = "") -> list[Finding]:
    """As a review of who has these Roles comes out, without one need."""
    return [Finding(each, () if each.role in mine and each.purpose != but else ("get x",)) for each in NEEDS]


def test_which_roles_somebody_has_is_said_in_a_line() -> None:
    link = Roles.of(found(Role.LINK))
    assert link.whole == (Role.LINK,) and link.missing == (Role.INGEST, Role.ATTACH, Role.SELF_SERVICE)
    assert link.sentence((Role.SELF_SERVICE,)) == (
        "variables and files of workloads needs devloop-ingest; attach needs devloop-attach; you have devloop-link"
    )
    nobody = Roles.of(found()).sentence()
    assert nobody.endswith("you have none of devloop's Roles") and all(each in nobody for each in FOR_WHAT.values())
    every = Roles.of(found(*Role))
    assert not every.part and not every.missing
    narrowed = Roles.of(found(Role.LINK, Role.INGEST, but="Read Secrets"))
    assert narrowed.whole == (Role.LINK,) and narrowed.part == (Role.INGEST,)
    assert narrowed.sentence().endswith("you have devloop-link and a part of devloop-ingest")
    # What only clusters with Istio or Argo have keeps no Role from being whole.
    without = [each if not each.need.special else Finding(each.need, ("x",)) for each in found(*Role)]
    assert Roles.of(without).whole == tuple(Role)


def objects(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def developers(text: str) -> dict[str, set[tuple[str, str]]]:
    """(verb, resource) by Role, of those that the developers' group is bound to."""
    made = objects(text)
    bindings = [each for each in made if each["kind"] == "RoleBinding"]
    bound = {each["roleRef"]["name"] for each in bindings if each["subjects"][0]["kind"] == "Group"}
    return {
        each["metadata"]["name"]: {
            (verb, resource) for rule in each["rules"] for verb in rule["verbs"] for resource in rule["resources"]
        }
        for each in made
        if each["kind"] == "Role" and each["metadata"]["name"] in bound
    }


def test_the_manifest_binds_the_smallest_role_and_each_role_has_those_before_it() -> None:
    assert list(developers(manifests("x"))) == ["devloop-link"]
    for role in Role:
        names = [each.object_name for each in (*role.smaller, role)]
        assert list(developers(roles(role=role))) == list(developers(manifests("x", role=role))) == names
        accounts = [each["metadata"]["name"] for each in objects(roles(role=role)) if "devloop-agent" in str(each)]
        assert ("devloop-agent-attach" in accounts) is (role in (Role.ATTACH, Role.SELF_SERVICE))
        kinds = [each["kind"] for each in objects(manifests("x", role=role))]
        assert ("Deployment" in kinds) is (role is not Role.SELF_SERVICE), "who makes the agent needs none"
        assert "NetworkPolicy" in kinds


def test_link_makes_no_pods_and_touches_no_secrets() -> None:
    rights = developers(roles())["devloop-link"]
    assert not {resource for _, resource in rights} & {"secrets", "pods/exec", "pods/ephemeralcontainers"}
    writes = {(verb, resource) for verb, resource in rights if verb not in ("get", "list", "watch")}
    assert writes == {("create", "pods/portforward"), ("create", "configmaps")}
    ingest = developers(roles(role=Role.INGEST))["devloop-ingest"]
    assert {verb for verb, _ in ingest} == {"get", "list", "watch"}, "nothing is changed, and nothing runs in pods"
    assert not {"pods/exec", "pods/attach", "pods/ephemeralcontainers"} & {resource for _, resource in ingest}
    assert not any(("create", "pods") in each for each in developers(roles(role=Role.ATTACH)).values())


def test_the_network_policy_denies_what_the_agent_denies_and_lets_in_what_comes() -> None:
    policy = next(each for each in objects(manifests("x")) if each["kind"] == "NetworkPolicy")
    deployment = next(each for each in objects(manifests("x")) if each["kind"] == "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    everywhere, names = policy["spec"]["egress"]
    pods_of_all, *addresses = everywhere["to"]
    assert pods_of_all == {"namespaceSelector": {}}, "whatever a network plugin thinks of pods' addresses in an ipBlock"
    excepted = {each for peer in addresses for each in peer["ipBlock"]["except"]}
    assert excepted == {network for network, why in DENIED if "link-local" in why or "metadata" in why}
    assert {each["port"] for each in names["ports"]} == {53}
    clients, pods = policy["spec"]["ingress"]
    assert "from" not in clients and pods["from"] == [{"podSelector": {}}]
    assert [(each["port"], each["endPort"]) for each in (*clients["ports"], *pods["ports"])] == [
        (20000, 29999),
        (19998, 19999),
        (30000, 65535),
    ]


def test_with_the_network_policy_devloop_attaches_as_it_does_without_one() -> None:
    """`attach` refuses where policies keep clients from the agent, or the agent from pods; this one does neither."""
    policy = next(each for each in objects(manifests("x")) if each["kind"] == "NetworkPolicy")
    policies = Policies([policy], "shop")
    agent, original, pod = (
        Peer(policy["spec"]["podSelector"]["matchLabels"], ("10.0.0.1",)),
        Peer({}),
        Peer({"app": "x"}),
    )
    assert all(policies.connects(pod, agent, port).may for port in (19998, 19999, 20000, 29999, 30000, 40000))
    assert not any(policies.connects(pod, agent, port).may for port in (2222, 2223, 15000))
    assert policies.connects(agent, original, 8080).may
    assert policies.outsiders(original, 8080, agent, 20000) == []


class Refusing:
    """A cluster whose Services may be listed, and nothing else."""

    namespace = "shop"

    async def listing(self, kind: Any, **how: Any) -> Any:
        if kind.plural == "services":
            return type("Listing", (), {"items": ()})()
        raise AbsentError(Absence.FORBIDDEN, refusal("list", kind.plural, "apps" if "s" in kind.group else ""))


async def test_who_may_read_no_workload_is_told_which_role_and_not_that_there_is_none() -> None:
    cluster: Any = Refusing()
    catalog = await survey(cluster)
    assert not catalog.may_read("web") and not catalog.may_read("deploy/web") and Catalog("shop").may_read("web")
    with pytest.raises(AbsentError) as problem:
        await find(cluster, "web")
    assert "--role" in str(problem.value.hint)
    said = notes(Found(Inventory((), ("deployments", "jobs")), [], {}, ("deployments", "jobs", "leases")))
    assert said == [
        "you may not list: deployments (the Role devloop-ingest), jobs (the Role devloop-ingest), "
        "leases (the Role devloop-attach)"
    ]

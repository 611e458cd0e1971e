"""The minimal Role: what devloop does is allowed, everything else is refused."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from . import kit
from .conftest import Namespace, Target
from .kit import ApiClient, client

# verb, API group, resource (with its subresource), and whether in the developer's own namespace
ALLOWED = [
    ("list", "", "pods"),
    ("watch", "", "services"),
    ("list", "apps", "deployments"),
    ("list", "discovery.k8s.io", "endpointslices"),
    ("get", "", "secrets"),
    ("get", "", "configmaps"),
    ("create", "", "configmaps"),
    ("get", "", "pods/portforward"),
    ("create", "", "pods/portforward"),
    ("create", "", "pods/exec"),
    ("create", "", "pods"),
    ("patch", "", "pods/ephemeralcontainers"),
    ("create", "", "serviceaccounts/token"),
    ("patch", "", "services"),
    ("create", "coordination.k8s.io", "leases"),
    ("patch", "apps", "deployments/scale"),
]
REFUSED = [
    ("delete", "apps", "deployments"),
    ("patch", "apps", "deployments"),
    ("create", "apps", "deployments"),
    ("delete", "", "persistentvolumeclaims"),
    ("patch", "", "secrets"),
    ("create", "", "secrets"),
    ("patch", "", "configmaps"),
    ("update", "", "configmaps"),
    ("delete", "", "configmaps"),
    ("deletecollection", "", "configmaps"),
    ("create", "rbac.authorization.k8s.io", "roles"),
    ("create", "rbac.authorization.k8s.io", "rolebindings"),
    ("escalate", "rbac.authorization.k8s.io", "roles"),
    ("impersonate", "", "users"),
    ("patch", "autoscaling", "horizontalpodautoscalers"),
    ("create", "networking.k8s.io", "networkpolicies"),
]
REFUSED_CLUSTER_WIDE = [
    ("list", "", "nodes"),
    ("list", "", "namespaces"),
    ("list", "", "secrets"),
    ("list", "", "pods"),
    ("create", "rbac.authorization.k8s.io", "clusterroles"),
    ("get", "", "nodes/proxy"),
    ("list", "", "persistentvolumes"),
]


async def may(api: ApiClient, namespace: str | None, verb: str, group: str, resource: str) -> bool:
    """Ask the API server, as `kubectl auth can-i` does; a namespace of None is "in all of them"."""
    name, _, below = resource.partition("/")
    attributes = client.V1ResourceAttributes(
        namespace=namespace, verb=verb, group=group, resource=name, subresource=below or None
    )
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
    answer = await client.AuthorizationV1Api(api).create_self_subject_access_review(review)
    return bool(answer.status.allowed)


async def test_both_developers_may_do_what_devloop_does_and_no_more(namespace: Namespace) -> None:
    for person in (namespace.developer, namespace.other_developer):
        async with kit.connect(person) as api:
            for each in ALLOWED:
                assert await may(api, namespace.name, *each), f"{each} is refused"
            for each in REFUSED:
                assert not await may(api, namespace.name, *each), f"{each} is allowed"
            for each in [*ALLOWED, *REFUSED_CLUSTER_WIDE]:
                assert not await may(api, None, *each), f"{each} is allowed in every namespace"
                assert not await may(api, "kube-system", *each), f"{each} is allowed in kube-system"


async def test_the_api_refuses_what_the_review_says_it_refuses(
    admin: ApiClient, namespace: Namespace, open_namespace: Namespace, developer: Path
) -> None:
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="mine"), string_data={"key": "value"})
    await client.CoreV1Api(admin).create_namespaced_secret(open_namespace.name, secret)
    role = client.V1ClusterRole(metadata=client.V1ObjectMeta(name=f"test-{secrets.token_hex(4)}"), rules=[])
    async with kit.connect(developer) as api:
        core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
        for attempt in (
            core.list_node(),
            core.read_namespaced_secret("mine", open_namespace.name),
            apps.delete_namespaced_deployment("any", namespace.name),
            client.RbacAuthorizationV1Api(api).create_cluster_role(role),
            core.delete_namespace(namespace.name),
        ):
            with pytest.raises(client.ApiException) as refused:
                await attempt
            assert refused.value.status == 403


async def test_two_developers_are_two_users(namespace: Namespace, developer: Path, other_developer: Path) -> None:
    names = set()
    for person in (developer, other_developer):
        async with kit.connect(person) as api:
            review = await client.AuthenticationV1Api(api).create_self_subject_review(client.V1SelfSubjectReview())
            names.add(review.status.user_info.username)
    assert len(names) == 2


async def test_a_developer_in_one_namespace_is_a_stranger_in_another(
    cluster: Target, namespace: Namespace, open_namespace: Namespace
) -> None:
    async with kit.connect(namespace.developer) as api:
        assert (await client.CoreV1Api(api).list_namespaced_pod(namespace.name)).items == []
        with pytest.raises(client.ApiException) as refused:
            await client.CoreV1Api(api).list_namespaced_pod(open_namespace.name)
        assert refused.value.status == 403

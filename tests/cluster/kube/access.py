"""Developers: users of the cluster who may do what one of devloop's documented Roles allows, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio import client as generated
from kubernetes.aio import utils as creating

from devloop.remote.kubernetes import kept
from devloop.remote.roles import Role

from .pki import Authority, kubeconfig, kubeconfig_for
from .settings import Settings

# The package has no types but for its models, and those call every field optional.
client: Any = generated
utils: Any = creating

TOKEN_SECONDS = 3600
AGENT_IMAGE = "devloop.test/agent:1"


def manifests(users: list[dict[str, str]], role: Role, *, agent: bool) -> list[dict[str, Any]]:
    """What an administrator applies for a Role: the objects of `devloop agent manifest --role`, bound to these subjects
    in place of the group; the Roles' rules untouched. With an agent, if there is to be one, where developers may not
    make it.
    """
    text = kept.manifests(AGENT_IMAGE, role=role) if agent else kept.roles(role=role)
    found: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    for each in found:
        if each["kind"] == "RoleBinding" and each["subjects"][0]["kind"] == "Group":
            each["subjects"] = users
    if role is Role.SELF_SERVICE:
        # The agents that tests make have the policies that they ask for; see `test_roles.py` for this one.
        found = [each for each in found if each["kind"] != "NetworkPolicy"]
    return found


async def grant(
    api: generated.ApiClient,
    namespace: str,
    users: list[dict[str, str]],
    role: Role = Role.SELF_SERVICE,
    *,
    agent: bool = True,
) -> None:
    """Give a Role in a namespace, as an administrator would."""
    for each in manifests(users, role, agent=agent):
        await utils.create_from_dict(api, each, namespace=namespace)


def subject(name: str, namespace: str, *, token: bool) -> dict[str, str]:
    """Who a developer is: a user of the certificate authority's, or a service account in their place."""
    if token:
        return {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    return {"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}


def by_certificate(settings: Settings, name: str, namespace: str) -> dict[str, Any]:
    """A kubeconfig with a client certificate of our own cluster's authority."""
    authority = Authority.load(settings.state / "etc")
    certificate, key = authority.issue(name)
    config = kubeconfig(settings.server, authority.certificate_pem, name, certificate, key)
    config["contexts"][0]["context"]["namespace"] = namespace
    return config


async def by_token(api: generated.ApiClient, cluster: dict[str, Any], name: str, namespace: str) -> dict[str, Any]:
    """A kubeconfig with a service account's token: for any cluster, whoever signs its certificates."""
    core = client.CoreV1Api(api)
    account = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name=name))
    await core.create_namespaced_service_account(namespace, account)
    request = client.AuthenticationV1TokenRequest(
        spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=TOKEN_SECONDS)
    )
    answer = await core.create_namespaced_service_account_token(name, namespace, request)
    return kubeconfig_for(cluster, name, {"token": answer.status.token}, namespace)


def current_cluster(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The `cluster` of a kubeconfig's current context, with paths that hold from anywhere."""
    contexts = {each["name"]: each["context"] for each in config["contexts"]}
    clusters = {each["name"]: each["cluster"] for each in config["clusters"]}
    chosen: dict[str, Any] = dict(clusters[contexts[config["current-context"]]["cluster"]])
    if "certificate-authority" in chosen:
        chosen["certificate-authority"] = str(folder / chosen["certificate-authority"])
    return chosen


def with_server(config: dict[str, Any], server: str, name: str | None = None) -> dict[str, Any]:
    """The same kubeconfig by another address; `name` is what the certificate is checked for, if not that."""
    changed: dict[str, Any] = json.loads(json.dumps(config))
    for each in changed["clusters"]:
        each["cluster"]["server"] = server
        if name:
            each["cluster"]["tls-server-name"] = name
    return changed

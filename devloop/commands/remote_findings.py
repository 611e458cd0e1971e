"""The part of `devloop doctor` for projects with a remote: the network of local services, the remote, the rights."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from devloop.commands.findings import Finding
from devloop.config.model import LinkWay, Network, Project, Remote, RemoteKind
from devloop.errors import DevloopError, RemoteError

if TYPE_CHECKING:
    from devloop.remote.kubernetes.api import Api
    from devloop.remote.kubernetes.kept import Standing
    from devloop.remote.kubernetes.kubeconfig import Kubeconfig
    from devloop.remote.kubernetes.rights import Finding as Right


def examine(project: Project, remote: Remote) -> Iterator[Finding]:
    """Everything that a remote adds to what devloop needs, but for the network of local services."""
    if any(how == "mount" for service in project.services.values() for how in service.place.volumes.values()):
        yield _mounts()
    match remote.kind:
        case RemoteKind.KUBERNETES:
            yield from asyncio.run(_kubernetes(remote))
        case RemoteKind.SSH:
            yield asyncio.run(_ssh(remote))
        case RemoteKind.SANDBOX:
            yield Finding("remote", "ok", "a sandbox, in the engine itself: it needs nothing", remote=True)


class LocalNetwork(NamedTuple):
    """Which network local services get."""

    finding: Finding
    on_host: bool
    """They listen in the host's, where their ports may be taken."""


def _on_host(level: str, text: str, hint: str = "") -> LocalNetwork:
    return LocalNetwork(Finding("network", level, text, hint), on_host=True)


def _apart(level: str, text: str, hint: str = "") -> LocalNetwork:
    return LocalNetwork(Finding("network", level, text, hint), on_host=False)


def network(wanted: Network | None) -> LocalNetwork:
    """Which network local services get, and what keeps them from a better one."""
    if wanted is Network.PORTS:
        return _on_host("ok", "ports on localhost, as the project says")
    if wanted is Network.HOSTS:
        if os.geteuid() == 0:
            return _on_host("ok", "the hosts file and loopback addresses, as the project says")
        hint = 'run devloop with sudo, or set `network = "ports"`, which needs nothing'
        return _on_host("error", "the hosts file, as the project says, which takes root", hint)
    if wanted is None and sys.platform != "linux":
        return _on_host("ok", "ports on localhost: there are no network namespaces here")
    from devloop.net.check import check

    try:
        found = asyncio.run(check())
    except DevloopError as problem:
        if wanted is Network.NAMESPACE:
            return _apart("error", problem.what, problem.hint or "")
        return _on_host("warning", f"ports on localhost, as {problem.what}", problem.hint or "")
    lacks = [
        text
        for there, text in (
            (found.ipv6, "no IPv6"),
            (found.low_ports, "no ports below 1024"),
        )
        if not there
    ]
    way = "a namespace for each service" + ("" if found.user_namespace else ", made as root")
    if lacks:
        return _apart("warning", f"{way}; {', '.join(lacks)}", "this kernel lacks a part; the rest works")
    return _apart("ok", f"{way}, with IPv6 and ports below 1024")


def _mounts() -> Finding:
    from devloop.remote.workload.fuse import missing

    if reason := missing():
        hint = 'install sshfs and FUSE 3, or set these volumes to "copy" or "ignore"'
        return Finding("volumes", "error", f'"mount" is not possible here: {reason}', hint)
    return Finding("volumes", "ok", '"mount": sshfs and /dev/fuse are there')


async def _kubernetes(remote: Remote) -> list[Finding]:
    from devloop.remote.kubernetes.api import Api
    from devloop.remote.open import kubeconfig

    try:
        # It may block on files; nothing else runs here.
        chosen = kubeconfig(remote)
    except RemoteError as problem:
        return [_refused("cluster", problem)]
    api = Api(chosen)
    try:
        return await _at(api, chosen, remote)
    except RemoteError as problem:
        return [_refused("cluster", problem)]
    finally:
        await api.close()


async def _at(api: Api, chosen: Kubeconfig, remote: Remote) -> list[Finding]:
    from devloop.remote.kubernetes.api import ApiError
    from devloop.remote.kubernetes.kept import standing
    from devloop.remote.kubernetes.rights import Roles, review
    from devloop.remote.roles import Role, ask_for

    # Not at the same time as the rest: an exec plugin may ask for a login, once.
    version = await api.get("/version")
    user, rights = await asyncio.gather(_user(api), review(api))
    where = f'context "{chosen.chosen.context}", namespace "{chosen.chosen.namespace}"'
    who = f" as {user}" if user else ""
    findings = [Finding("cluster", "ok", f"{where}: Kubernetes {version.get('gitVersion', '?')}{who}", remote=True)]
    agent: Standing | None = None
    if remote.link is not LinkWay.PORTFORWARD:
        try:
            agent = await standing(api)
        except ApiError as problem:
            findings.append(Finding("agent", "warning", f"it can't be looked for: {problem.what}", remote=True))
        else:
            findings.append(_agent(agent))
    # Who has no need to make an agent is not told that they can't.
    made = (agent is not None and agent.installed) or remote.link is LinkWay.PORTFORWARD
    but = (Role.SELF_SERVICE,) if made else ()
    roles = Roles.of(rights)
    lacking = [each for each in (*roles.part, *roles.missing) if each not in but]
    hint = ask_for(lacking[-1]) if lacking else ""
    findings.append(Finding("roles", "warning" if lacking else "ok", roles.sentence(but), hint, remote=True))
    return findings + [_right(each, remote, agent) for each in rights]


async def _user(api: Api) -> str:
    """Who the API server takes us for (SelfSubjectReview, Kubernetes 1.28); empty if it does not say."""
    from devloop.remote.kubernetes.api import ApiError

    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        answer: dict[str, Any] = await api.request("POST", path, body)
    except ApiError:
        return ""
    return str(answer.get("status", {}).get("userInfo", {}).get("username", ""))


def _agent(agent: Standing | None) -> Finding:
    if agent is None:
        return Finding("agent", "ok", "none is there; the first link makes one", remote=True)
    made = f", made by {agent.made_by}" if agent.made_by else ""
    life = "stays" if agent.installed else "goes with its last client"
    if not agent.running:
        hint = f"kubectl describe pod {agent.pod}"
        return Finding("agent", "warning", f"{agent.pod} does not run: {agent.state}{made}", hint, remote=True)
    return Finding("agent", "ok", f"{agent.pod} runs and {life}{made}", remote=True)


def _right(right: Right, remote: Remote, agent: Standing | None) -> Finding:
    need = right.need
    if right.granted:
        return Finding("right", "ok", need.purpose, remote=True)
    text = f"{need.purpose}: not allowed: {_shortly(right.missing)} ({need.role.object_name})"
    if need.agent and remote.link is LinkWay.PORTFORWARD:
        return Finding("right", "ok", text, "not needed: the project's link is portforward", right.missing, remote=True)
    if need.maker and agent is not None and agent.installed:
        return Finding("right", "ok", text, "not needed: the agent is there to stay", right.missing, remote=True)
    # The project insists on the agent: without it there is no link.
    essential = need.essential or (need.agent and remote.link is LinkWay.AGENT)
    cost = "there is no link, as the project's is `agent`" if essential and need.agent else need.cost
    return Finding("right", "error" if essential else "warning", text, cost, right.missing, remote=True)


def _shortly(missing: tuple[str, ...]) -> str:
    """Rights as people read them: "get, list, watch pods; create secrets"."""
    verbs: dict[str, list[str]] = {}
    for each in missing:
        verb, _, resource = each.partition(" ")
        verbs.setdefault(resource, []).append(verb)
    return "; ".join(f"{', '.join(several)} {resource}" for resource, several in verbs.items())


async def _ssh(remote: Remote) -> Finding:
    import asyncssh

    from devloop.remote.ssh import connect

    host = remote.host or ""
    try:
        connection = await connect(host, where=host)
    except RemoteError as problem:
        return _refused("host", problem)
    async with connection:
        user, address = connection.get_extra_info("username"), connection.get_extra_info("peername")
        try:
            # Whether anything listens there does not matter: a server that forbids it says so.
            _, writer = await connection.open_connection("127.0.0.1", 22)
            writer.close()
        except asyncssh.ChannelOpenError as problem:
            if problem.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                text = f"{host} lets you in, and forwards no connections"
                return Finding("host", "error", text, "AllowTcpForwarding in its sshd_config", remote=True)
    at = f" ({address[0]})" if address else ""
    return Finding("host", "ok", f"{user}@{host}{at}: its host key is known, and it forwards connections", remote=True)


def _refused(what: str, problem: RemoteError) -> Finding:
    text = f"{problem.where}: {problem.what}" if problem.where else problem.what
    return Finding(what, "error", text, problem.hint or "", remote=True)

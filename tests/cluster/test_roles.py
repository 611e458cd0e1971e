"""What each of devloop's Roles gives at a cluster, what it refuses and in which words, and the agent's NetworkPolicy.

Every developer here has one Role, with the agent that an administrator has installed. What Eve tries she tries without
devloop, as anybody with her kubeconfig could.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from devloop.attach import ALL
from devloop.errors import DevloopError
from devloop.protocol import State
from devloop.remote.kubernetes.agent import KubernetesLink
from devloop.remote.link import OpenError, Refusal
from devloop.remote.roles import Role

from . import kit
from .attaching import PORT, SERVICE, Here, ask, client_pod, engine, objects_of, run_service
from .command import Cli
from .conftest import Namespace, Target, a_namespace
from .kit import ApiClient, client
from .project import a_project
from .test_link_contract import connected, run_target
from .test_link_life import says_bye

SMALLER = [pytest.param(each, marks=pytest.mark.role(each.value)) for each in (Role.LINK, Role.INGEST, Role.ATTACH)]


def attacks(
    api: ApiClient, kubeconfig: Path, space: str, pod: str
) -> dict[str, tuple[Role, Callable[[], Awaitable[Any]]]]:
    """By what it is, the smallest Role that may do it, and the doing."""
    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    leases = client.CoordinationV1Api(api)
    # As the `restricted` standard wants it: what refuses it is the Role.
    main = {
        "name": "eve",
        "image": kit.BASE,
        "command": ["sleep", "1"],
        "securityContext": api.sanitize_for_serialization(kit.RESTRICTED),
    }
    container = {"spec": {"ephemeralContainers": [main]}}
    made = {"metadata": {"name": "eve"}, "spec": {"containers": [main]}}
    token = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[]))
    selector = {"spec": {"selector": {"app": "eve"}}}
    lease = {"metadata": {"name": f"eve-{secrets.token_hex(3)}"}}
    return {
        "list pods": (Role.LINK, lambda: core.list_namespaced_pod(space)),
        "list Services": (Role.LINK, lambda: core.list_namespaced_service(space)),
        "read the agent's ConfigMap": (Role.LINK, lambda: core.read_namespaced_config_map("devloop-agent", space)),
        "read another ConfigMap": (Role.INGEST, lambda: core.read_namespaced_config_map("kube-root-ca.crt", space)),
        "list ConfigMaps": (Role.INGEST, lambda: core.list_namespaced_config_map(space)),
        "list Deployments": (Role.INGEST, lambda: apps.list_namespaced_deployment(space)),
        "list Secrets": (Role.INGEST, lambda: core.list_namespaced_secret(space)),
        "read logs": (Role.INGEST, lambda: core.read_namespaced_pod_log(pod, space)),
        "run a command": (Role.ATTACH, lambda: kit.execute(kubeconfig, space, pod, "true")),
        "put a container into a pod": (
            Role.ATTACH,
            lambda: core.patch_namespaced_pod_ephemeralcontainers(pod, space, container, dry_run="All"),
        ),
        "be a service account": (
            Role.ATTACH,
            lambda: core.create_namespaced_service_account_token("devloop-agent", space, token),
        ),
        "lead a Service elsewhere": (
            Role.ATTACH,
            lambda: core.patch_namespaced_service("target", space, selector, dry_run="All"),
        ),
        "take a lease": (Role.ATTACH, lambda: leases.create_namespaced_lease(space, lease, dry_run="All")),
        "stop a workload": (
            Role.ATTACH,
            lambda: apps.patch_namespaced_deployment_scale("devloop-agent", space, {"spec": {}}, dry_run="All"),
        ),
        "make a pod": (Role.SELF_SERVICE, lambda: core.create_namespaced_pod(space, made, dry_run="All")),
        "delete a pod": (Role.SELF_SERVICE, lambda: core.delete_namespaced_pod(pod, space, dry_run="All")),
    }


@pytest.fixture
async def elsewhere(cluster: Target, admin: ApiClient) -> AsyncIterator[Namespace]:
    """Another namespace, without an agent, that lets any pod in."""
    async with a_namespace(cluster, admin, "privileged") as made:
        yield made


NOBODYS: dict[str, Callable[[Any, str], Awaitable[Any]]] = {
    "change the agent's ConfigMap": lambda core, space: core.patch_namespaced_config_map("devloop-agent", space, {}),
    "delete the agent's ConfigMap": lambda core, space: core.delete_namespaced_config_map("devloop-agent", space),
    "delete every key": lambda core, space: core.delete_collection_namespaced_config_map(space),
    "bind a Role": lambda core, space: client.RbacAuthorizationV1Api(core.api_client).create_namespaced_role_binding(
        space, {"metadata": {"name": "eve"}, "roleRef": {"kind": "Role", "name": "devloop-attach", "apiGroup": ""}}
    ),
    "lift the NetworkPolicy": lambda core, space: client.NetworkingV1Api(
        core.api_client
    ).delete_namespaced_network_policy("devloop-agent", space),
}
"""What no developer may, whichever the Role."""


async def status(doing: Awaitable[Any]) -> int:
    """403 for what is refused; 0 for what is let through, also if there is nothing of it then."""
    try:
        await doing
    except client.ApiException as problem:
        return 403 if problem.status == 403 else 0
    except aiohttp.WSServerHandshakeError as problem:
        return 403 if problem.status == 403 else 0
    return 0


@pytest.mark.parametrize("smaller", SMALLER)
async def test_a_role_allows_what_it_says_and_nothing_of_the_next_one(
    admin: ApiClient, namespace: Namespace, smaller: Role
) -> None:
    await run_target(admin, namespace.name)
    pod = await kit.until(
        client.CoreV1Api(admin).list_namespaced_pod,
        namespace.name,
        ready=lambda each: each.status.container_statuses,
        label_selector="devloop.dev/agent=true",
    )
    async with kit.connect(namespace.developer) as eve:
        allowed = {}
        known = attacks(eve, namespace.developer, namespace.name, pod.metadata.name)
        for what, (_, do) in known.items():
            allowed[what] = await status(do()) == 0
        order = tuple(Role)
        assert allowed == {what: order.index(role) <= order.index(smaller) for what, (role, _) in known.items()}
        core = client.CoreV1Api(eve)
        assert {what: await status(do(core, namespace.name)) for what, do in NOBODYS.items()} == dict.fromkeys(
            NOBODYS, 403
        )


class Told:
    """Who sends datagrams, and hears how that ends."""

    def __init__(self) -> None:
        self.why = asyncio.get_running_loop().create_future()

    def received(self, data: bytes) -> None:
        self.why.set_result(f"an answer: {data!r}")

    def refused(self) -> None:
        self.why.set_result("nobody listens there, and it was asked")

    def ended(self, why: str) -> None:
        self.why.set_result(why)


async def denied(link: KubernetesLink, *addresses: str) -> None:
    """Neither TCP nor UDP goes there by the agent, and it says so."""
    for address in addresses:
        with pytest.raises(OpenError, match="is not connected to") as problem:
            await link.open(address, 80)
        assert problem.value.refusal is Refusal.PROHIBITED
        assert "Where the agent does not connect to" in str(problem.value.hint)
        told = Told()
        flow = await link.datagrams(told, address, 80)
        assert "is not connected to" in await asyncio.wait_for(told.why, 10)
        flow.close()


@pytest.mark.role("link")
async def test_link_connects_by_the_installed_agent_and_says_what_else_takes_which_role(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(run_target(admin, namespace.name), run_service(admin, namespace.name))
    async with connected(namespace.developer, tmp_path / "ada", "agent") as link:
        assert (link.state.kind, link.state.notes) == ("agent", ())
        assert await says_bye(link)
        agent = (
            await client.CoreV1Api(admin).list_namespaced_pod(namespace.name, label_selector="devloop.dev/agent=true")
        ).items[0]
        await denied(
            link,
            *("169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.100.100.200"),
            *("127.0.0.1", "::1", agent.status.pod_ip),
        )
    devloop = Cli(tmp_path / "cli", namespace.developer)
    devloop.folder.mkdir()
    (devloop.folder / "devloop.toml").write_text('[services.web]\ncommand = "true"\n[remote]\nkind = "kubernetes"\n')
    findings = (await devloop("doctor", "--json")).json
    [roles] = [each for each in findings if each["what"] == "roles"]
    assert roles["text"] == (
        "variables and files of workloads needs devloop-ingest; attach needs devloop-attach; you have devloop-link"
    )
    assert "--role attach" in roles["hint"]
    assert not [each for each in findings if each["level"] == "error"]
    listed = (await devloop("list")).stderr
    assert "deployments (the Role devloop-ingest)" in listed and "leases (the Role devloop-attach)" in listed
    for command in (
        ("env", "--workload", "deployment/api"),
        ("env", "--workload", "api"),
        ("logs", "--remote", "deployment/api"),
        ("exec", "--workload", "deployment/api", "--", "true"),
    ):
        refused = (await devloop(*command, code=3)).stderr
        assert "forbidden" in refused and "the Role devloop-ingest" in refused, (command, refused)


@pytest.mark.role("link")
async def test_with_link_alone_a_service_starts_without_its_workload_and_says_why(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await run_service(admin, namespace.name)
    with a_project(tmp_path / "ada", namespace.developer, namespace.name) as project:
        project.config(
            '[services.api]\ncommand = "sleep 600"\nready = false\n'
            '[services.other]\ncommand = "sleep 600"\nready = false\nworkload = "deployment/api"\n'
        )
        async with project.up() as running:
            for service in ("api", "other"):
                await running.until_state(service, State.READY)
        text = running.output()
    for service in ("api", "other"):
        said = f"{service} has no environment and no files of the cluster: you may not read its workloads"
        assert said in text, text
    assert "the Role devloop-ingest" in text


@pytest.mark.role("ingest")
async def test_ingest_is_told_that_attach_takes_its_role_and_changes_nothing(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await run_service(admin, namespace.name)
    before = await objects_of(admin, namespace.name)
    async with Here() as here, engine(namespace.developer, tmp_path) as ada:
        for wanted in (ada.wanted(here, routes=(ALL,)), ada.wanted(here, kind="replace", workload="deployment/api")):
            async with asyncio.timeout(20):
                with pytest.raises(DevloopError) as problem:
                    await ada.attachments.attach(wanted, here)
            assert "forbidden" in problem.value.what
            assert "the Role devloop-attach" in str(problem.value.hint)
    assert await objects_of(admin, namespace.name) == before
    devloop = Cli(tmp_path / "cli", namespace.developer)
    ran = await devloop("env", "--workload", "deployment/api", "--format", "json")
    assert '"NAME"' in ran.stdout, "variables of the template"
    assert (await devloop("list", "--json")).json["unseen"] == ["leases"]


CONNECT = "import socket; socket.create_connection(({!r}, {}), 2); print('connected')"


async def connects(admin: Path, space: str, pod: str, address: str, port: int) -> bool:
    """Whether a pod can connect there now. Refused is an answer, too: it came."""
    ran = await kit.execute(admin, space, pod, "python3", "-c", CONNECT.format(address, port))
    return ran.code == 0 or "refused" in ran.stderr


@pytest.mark.role("attach")
async def test_the_network_policy_lets_in_clients_and_pods_and_nobody_to_what_is_the_agents_own(
    admin: ApiClient, cluster: Target, namespace: Namespace, elsewhere: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(
        run_service(admin, namespace.name),
        client_pod(admin, namespace.name),
        kit.run_pod(admin, elsewhere.name, "outsider"),
    )
    async with Here() as here, engine(namespace.developer, tmp_path) as ada:
        await ada.attachments.attach(ada.wanted(here, routes=(ALL,)), here)
        assert await ask(namespace) == "here"
        host = f"{SERVICE}.{namespace.name}"
        ran = await kit.execute(
            cluster.admin, elsewhere.name, "outsider", "curl", "-s", "--max-time", "10", f"http://{host}:{PORT}/"
        )
        assert '"here"' in ran.stdout, "clients come from any namespace"
        found = await client.CoreV1Api(admin).list_namespaced_pod(
            namespace.name, label_selector="devloop.dev/agent=true"
        )
        address = found.items[0].status.pod_ip

        async def ways() -> dict[str, bool]:
            asked = {
                f"{space.name == namespace.name} {port}": connects(cluster.admin, space.name, pod, address, port)
                for space, pod in ((namespace, "client"), (elsewhere, "outsider"))
                for port in (2223, 19999, 20000, 30000)
            }
            return dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))

        await kit.eventually(
            ways,
            {
                "True 2223": False,
                "True 19999": True,
                "True 20000": True,
                "True 30000": True,
                "False 2223": False,
                "False 19999": False,
                "False 20000": True,
                "False 30000": False,
            },
            30,
        )


METADATA = """
import http.server, subprocess
subprocess.run(["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"], check=True)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"credentials")
http.server.HTTPServer(("", 80), Answer).serve_forever()
"""
ASK = "import urllib.request; print(urllib.request.urlopen('http://169.254.169.254/', timeout=3).read().decode())"


async def as_root(admin: ApiClient, space: str, name: str, command: list[str], **spec: Any) -> Any:
    """A pod that may change its network."""
    context = client.V1SecurityContext(privileged=True, run_as_user=0)
    container = client.V1Container(
        name="main", image=kit.BASE, image_pull_policy="IfNotPresent", command=command, security_context=context
    )
    pod = client.V1Pod(
        metadata=client.V1ObjectMeta(name=name),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0, **spec),
    )
    await client.CoreV1Api(admin).create_namespaced_pod(space, pod)
    return await kit.pod_ready(admin, space, name)


@pytest.mark.role("link")
async def test_the_network_policy_keeps_the_agent_from_a_metadata_service_that_answers_everybody_else(
    admin: ApiClient, cluster: Target, namespace: Namespace, elsewhere: Namespace
) -> None:
    cluster.need_own("A metadata service needs a route of the node's")
    space = elsewhere.name
    await kit.run_pod(admin, namespace.name, "client")
    service = await as_root(admin, space, "metadata", ["python3", "-c", METADATA])
    route = f"ip route replace 169.254.169.254/32 via {service.status.pod_ip} && exec sleep infinity"
    await as_root(admin, space, "route", ["sh", "-c", route], host_network=True)
    try:
        found = await kit.until(
            client.CoreV1Api(admin).list_namespaced_pod,
            namespace.name,
            ready=kit.is_ready,
            label_selector="devloop.dev/agent=true",
        )

        async def asked(pod: str) -> str:
            return (await kit.execute(cluster.admin, namespace.name, pod, "python3", "-c", ASK)).stdout.strip()

        await kit.eventually(lambda: asked("client"), "credentials", 20)
        assert await asked(found.metadata.name) == ""
    finally:
        await kit.execute(cluster.admin, space, "route", "ip", "route", "del", "169.254.169.254/32")

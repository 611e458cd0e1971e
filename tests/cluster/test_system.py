"""The cluster is what its users take it for: DNS, Services, storage, admission, access."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from . import kit
from .conftest import Namespace, Target
from .kit import ApiClient, client

HTTP = ("python3", "-m", "http.server", "8080", "--directory", "/etc")

PAGE = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())
http.server.HTTPServer(("", 8080), Page).serve_forever()
"""


def service(name: str, app: str, **spec: Any) -> Any:
    port = client.V1ServicePort(name="http", port=80, target_port=8080)
    return client.V1Service(
        metadata=client.V1ObjectMeta(name=name),
        spec=client.V1ServiceSpec(selector={"app": app}, ports=[port], **spec),
    )


@pytest.fixture
async def core(admin: ApiClient) -> AsyncIterator[Any]:
    yield client.CoreV1Api(admin)


async def test_dns_answers_as_a_clusters_does(
    cluster: Target, admin: ApiClient, core: Any, namespace: Namespace
) -> None:
    name = namespace.name
    address = (await core.create_namespaced_service(name, service("page", "server"))).spec.cluster_ip
    await core.create_namespaced_service(name, service("nodes", "server", cluster_ip="None"))
    server = await kit.run_pod(admin, name, "server", HTTP, hostname="first", subdomain="nodes")
    pod_ip = server.status.pod_ip
    zone = f"{name}.svc.cluster.local"
    dashed = pod_ip.replace(".", "-")

    async def ask(*words: str) -> list[str]:
        ran = await kit.execute(cluster.admin, name, "server", "dig", "+short", "+timeout=2", *words)
        assert ran.code == 0, ran
        return ran.stdout.split("\n")[:-1]

    # EndpointSlices are written by a controller, and CoreDNS watches them: ask until they are there.
    await kit.eventually(lambda: ask(f"first.nodes.{zone}"), [pod_ip])
    assert await ask(f"page.{zone}") == [address]
    assert await ask("+search", "page") == [address]
    assert await ask(f"nodes.{zone}") == [pod_ip]
    assert await ask(f"{dashed}.{name}.pod.cluster.local") == [pod_ip]
    assert await ask("SRV", f"_http._tcp.page.{zone}") == [f"0 100 80 page.{zone}."]
    assert await ask("SRV", f"_http._tcp.nodes.{zone}") == [f"0 100 8080 first.nodes.{zone}."]
    assert await ask("-x", address) == [f"page.{zone}."]
    for missing in (f"nothing.{zone}", "nothing.example.org"):
        ran = await kit.execute(cluster.admin, name, "server", "dig", "+timeout=2", missing)
        assert "status: NXDOMAIN" in ran.stdout


async def test_a_service_leads_to_its_pods_and_to_no_other(
    cluster: Target, admin: ApiClient, core: Any, namespace: Namespace
) -> None:
    name = namespace.name
    await core.create_namespaced_service(name, service("page", "one"))
    for each in ("one", "two"):
        await kit.run_pod(admin, name, each, ["python3", "-c", PAGE, each])

    async def fetch() -> str:
        ran = await kit.execute(cluster.admin, name, "two", "curl", "-s", "--max-time", "2", "http://page")
        return ran.stdout

    await kit.eventually(fetch, "one")
    await core.patch_namespaced_service("page", name, {"spec": {"selector": {"app": "two"}}})
    # A pod that reaches itself through its own Service needs the bridge's hairpin mode.
    await kit.eventually(fetch, "two")


async def test_a_claim_gets_a_volume_that_outlives_its_pod_and_ends_with_the_claim(
    cluster: Target, admin: ApiClient, core: Any, namespace: Namespace
) -> None:
    name = namespace.name
    spec = client.V1PersistentVolumeClaimSpec(
        access_modes=["ReadWriteOnce"],
        resources=client.V1VolumeResourceRequirements(requests={"storage": "16Mi"}),
    )
    claim = client.V1PersistentVolumeClaim(metadata=client.V1ObjectMeta(name="data"), spec=spec)
    await core.create_namespaced_persistent_volume_claim(name, claim)
    source = client.V1PersistentVolumeClaimVolumeSource(claim_name="data")
    mounted: dict[str, Any] = {
        "volumes": [client.V1Volume(name="data", persistent_volume_claim=source)],
        "volume_mounts": [client.V1VolumeMount(name="data", mount_path="/data")],
    }
    first = await kit.run_pod(admin, name, "first", **mounted)
    # As an ordinary user: the pod is restricted.
    ran = await kit.execute(cluster.admin, name, "first", "sh", "-c", "echo kept > /data/file")
    assert ran == kit.Ran(0, "", "")
    await core.delete_namespaced_pod("first", name)
    await kit.until_gone(core.read_namespaced_pod, "first", name, uid=first.metadata.uid)
    await kit.run_pod(admin, name, "second", **mounted)
    assert (await kit.execute(cluster.admin, name, "second", "cat", "/data/file")).stdout == "kept\n"

    bound = await core.read_namespaced_persistent_volume_claim("data", name)
    volume = await core.read_persistent_volume(bound.spec.volume_name)
    await core.delete_namespaced_pod("second", name)
    await core.delete_namespaced_persistent_volume_claim("data", name)
    await kit.until_gone(core.read_persistent_volume, volume.metadata.name, uid=volume.metadata.uid)


async def test_the_restricted_standard_is_enforced(core: Any, namespace: Namespace, open_namespace: Namespace) -> None:
    container = client.V1Container(
        name="main", image=kit.BASE, security_context=client.V1SecurityContext(privileged=True)
    )
    pod = client.V1Pod(metadata=client.V1ObjectMeta(name="bold"), spec=client.V1PodSpec(containers=[container]))
    with pytest.raises(client.ApiException) as refused:
        await core.create_namespaced_pod(namespace.name, pod)
    assert refused.value.status == 403
    assert re.search(r'violates PodSecurity \\?"restricted', refused.value.body)
    await core.create_namespaced_pod(open_namespace.name, pod)


async def test_the_server_says_which_kubernetes_it_is(cluster: Target, admin: ApiClient) -> None:
    cluster.need_own("The version is ours to choose")
    version = await client.VersionApi(admin).get_code()
    assert (version.major, version.minor) == ("1", "36")

"""Services that speak TLS: header routes with the certificate's Secret, client certificates, gRPC, under load."""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import Header, Match, Route
from devloop.attach.seam import AttachError
from devloop.config.model import Encryption
from tests.certificates import Authority, Pair

from . import attach_grpc, kit, tls_programs
from .attaching import Here, engine, objects_of
from .conftest import Namespace
from .kit import ApiClient, client

pytestmark = pytest.mark.role("attach")

PORT = 8443
SOURCE = inspect.getsource(tls_programs)
GRPC = inspect.getsource(attach_grpc).replace("from __future__ import annotations", "")
MINE = Route((Header("x-user", Match("exact", "ada")),))
CA = Authority()


async def put_secret(admin: ApiClient, namespace: str, name: str, pair: Pair) -> None:
    """Make one, or give it another certificate."""
    data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": CA.certificate}
    core = client.CoreV1Api(admin)
    body = client.V1Secret(metadata=client.V1ObjectMeta(name=name), type="kubernetes.io/tls", string_data=data)
    if name in {each.metadata.name for each in (await core.list_namespaced_secret(namespace)).items}:
        await core.replace_namespaced_secret(name, namespace, body)
    else:
        await core.create_namespaced_secret(namespace, body)


def volume(name: str, secret: str) -> Any:
    return client.V1Volume(name=name, secret=client.V1SecretVolumeSource(secret_name=secret))


async def run(admin: ApiClient, namespace: str, kind: str, clients: str, app_protocol: str | None = "https") -> Pair:
    """The Service `web` with two pods, which mount their certificate; a pod to ask from."""
    pair = CA.sign("web", "web", f"web.{namespace}.svc")
    await put_secret(admin, namespace, "web-tls", pair)
    await put_secret(admin, namespace, "devloop-client", CA.sign("devloop"))
    await put_secret(admin, namespace, "ann", CA.sign("ann"))
    source = SOURCE if kind == "http" else SOURCE.replace("GREETER: Any", f"{GRPC}\nGREETER: Any", 1)
    field = client.V1ObjectFieldSelector(field_path="metadata.name")
    container = client.V1Container(
        name="main",
        image=kit.BASE,
        image_pull_policy="IfNotPresent",
        command=["python3", "-c", source, "serve", "/certs", str(PORT), kind, clients],
        env=[client.V1EnvVar(name="NAME", value_from=client.V1EnvVarSource(field_ref=field))],
        security_context=kit.RESTRICTED,
        readiness_probe=client.V1Probe(tcp_socket=client.V1TCPSocketAction(port=PORT), period_seconds=1),
        volume_mounts=[client.V1VolumeMount(name="certs", mount_path="/certs")],
    )
    labels = {"app": "web"}
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(
            containers=[container], volumes=[volume("certs", "web-tls")], termination_grace_period_seconds=1
        ),
    )
    spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels=labels), template=template)
    apps = client.AppsV1Api(admin)
    await apps.create_namespaced_deployment(
        namespace, client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec)
    )
    port = client.V1ServicePort(port=PORT, target_port=PORT, app_protocol=app_protocol)
    await client.CoreV1Api(admin).create_namespaced_service(
        namespace,
        client.V1Service(
            metadata=client.V1ObjectMeta(name="web"), spec=client.V1ServiceSpec(selector=labels, ports=[port])
        ),
    )
    mounts = [client.V1VolumeMount(name=each, mount_path=f"/{each}") for each in ("certs", "ann")]
    await asyncio.gather(
        kit.run_pod(
            admin, namespace, "client", volumes=[volume("certs", "web-tls"), volume("ann", "ann")], volume_mounts=mounts
        ),
        kit.until(
            apps.list_namespaced_deployment,
            namespace,
            ready=lambda found: (found.status.ready_replicas or 0) == 2,
            field_selector="metadata.name=web",
        ),
    )
    return pair


class HereTls(Here):
    """A local service that speaks TLS, or plain HTTP."""

    def __init__(self, context: Any = None, greeter: Any = None) -> None:
        super().__init__("here")
        self._context = context
        self._greeter = greeter

    async def begin(self) -> None:
        """The (next) process."""
        server = await tls_programs.serve("here", self.port, self._context, self._greeter, "127.0.0.1")
        self._servers = [server]
        self.port = server.sockets[0].getsockname()[1]


class Load:
    """A load from the pod `client`, until it is stopped."""

    def __init__(self, space: Namespace, user: str, **plan: Any) -> None:
        self._space = space
        self._file = f"/tmp/stop-{secrets.token_hex(4)}"
        plan = {"host": "web", "port": PORT, "user": user, "file": self._file, "folder": "/certs", **plan}
        command = ("python3", "-c", SOURCE, "load", json.dumps(plan))
        self._task = asyncio.create_task(kit.execute(space.developer, space.name, "client", *command))

    async def stop(self) -> dict[str, Any]:
        await kit.execute(self._space.developer, self._space.name, "client", "touch", self._file)
        ran = await self._task
        assert ran.code == 0, ran
        found: dict[str, Any] = json.loads(ran.stdout)
        return found


async def curl(space: Namespace, *arguments: str) -> str:
    """What one request is answered, over TLS."""
    command = ("curl", "-sS", "--max-time", "15", "--cacert", "/certs/ca.crt", *arguments, f"https://web:{PORT}/")
    ran = await kit.execute(space.developer, space.name, "client", *command)
    return ran.stdout + ran.stderr


@pytest.mark.role("self-service")
@pytest.mark.parametrize("speaks", ["tls", "plain"])
async def test_https_under_load_loses_no_request_and_keeps_its_key(
    admin: ApiClient, namespace: Namespace, tmp_path: Path, speaks: Any
) -> None:
    pair = await run(admin, namespace.name, "http", "anybody")
    before = await objects_of(admin, namespace.name)
    pair_files = tmp_path / "certs"
    pair_files.mkdir()
    for name, text in (("tls.crt", pair.certificate), ("tls.key", pair.key)):
        (pair_files / name).write_text(text)
    local = tls_programs.context(str(pair_files), "http/1.1", clients=False) if speaks == "tls" else None
    async with engine(namespace.developer, tmp_path, "ada") as ada, HereTls(local) as here:
        mine, others = Load(namespace, "ada"), Load(namespace, "ben")
        await asyncio.sleep(2)
        wanted = ada.wanted(here, service="web", ports={PORT: here.port}, routes=(MINE,), tls=Encryption(local=speaks))
        found = await ada.attachments.attach(wanted, here)
        assert '"here"' in await curl(namespace, "-H", "x-user: ada")
        assert '"web-' in await curl(namespace, "-H", "x-user: ben")
        # The key is on no disk of the agent's: neither where Envoy's files are, nor elsewhere.
        body = pair.key.splitlines()[2]
        searched = await kit.execute(
            namespace.developer, namespace.name, "devloop-agent", "python3", "-c", SEARCH, body, "/tmp", "/dev/shm"
        )
        assert searched.stdout == "found []\n", searched
        for container in ("agent", "envoy"):
            read = client.CoreV1Api(admin).read_namespaced_pod_log
            assert body not in await read("devloop-agent", namespace.name, container=container)
        # A reload: requests wait.
        here.reloading.clear()
        here.end()
        await asyncio.sleep(0.5)
        await here.begin()
        here.reloading.set()
        # A rotated certificate is what clients see at once; the pods take theirs up later, or never.
        rotated = CA.sign("web", "web", f"web.{namespace.name}.svc")
        await put_secret(admin, namespace.name, "web-tls", rotated)

        async def serial() -> bool:
            ran = await kit.execute(namespace.developer, namespace.name, "client", "python3", "-c", SHOWN, str(PORT))
            return ran.stdout.strip() == rotated.certificate.strip()

        await kit.eventually(serial, True, 20)
        assert '"here"' in await curl(namespace, "-H", "x-user: ada")
        assert '"web-' in await curl(namespace)
        await ada.attachments.leave(found)
        assert '"web-' in await curl(namespace, "-H", "x-user: ada")
        await asyncio.sleep(1)
        figures = {"mine": await mine.stop(), "others": await others.stop()}
        print(speaks, figures)
        for each in figures.values():
            assert each["failed"] == {}
        assert figures["mine"]["who"]["here"] > 50
        assert set(figures["others"]["who"]) == {"web"}
    assert await objects_of(admin, namespace.name) == before


SEARCH = """
import os, sys
found = []
for top in sys.argv[2:]:
    for folder, _, names in os.walk(top):
        for name in names:
            try:
                if sys.argv[1] in open(os.path.join(folder, name), errors="replace").read():
                    found.append(os.path.join(folder, name))
            except OSError:
                pass
print("found", found)
"""
SHOWN = "import ssl, sys; print(ssl.get_server_certificate(('web', int(sys.argv[1]))))"


async def test_client_certificates(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await run(admin, namespace.name, "http", "clients")
    async with engine(namespace.developer, tmp_path, "ada") as ada, HereTls() as here:
        more = {"service": "web", "ports": {PORT: here.port}, "routes": (MINE,)}
        with pytest.raises(AttachError, match="wants a certificate of its clients"):
            await ada.attachments.attach(ada.wanted(here, **more, tls=Encryption(local="plain")), here)
        load = Load(namespace, "ada", client="/ann")
        await asyncio.sleep(1)
        wanted = ada.wanted(here, **more, tls=Encryption(local="plain", client="devloop-client"))
        found = await ada.attachments.attach(wanted, here)
        assert any("x-forwarded-client-cert" in each for each in found.state.notes)
        ann = ("--cert", "/ann/tls.crt", "--key", "/ann/tls.key")
        for arguments, who in ((("-H", "x-user: ada"), '"here"'), ((), '"web-')):
            answer = await curl(namespace, *ann, *arguments, "-H", "x-forwarded-client-cert: Subject=root")
            assert who in answer and "CN=ann" in answer and "root" not in answer
        refused = await curl(namespace, "-H", "x-user: ada")
        assert "who" not in refused and "curl:" in refused
        await ada.attachments.leave(found)
        assert '"web-' in await curl(namespace, *ann, "-H", "x-user: ada")
        figures = await load.stop()
        print(figures)
        assert figures["failed"] == {} and figures["who"]["here"] > 10


async def test_grpc_over_tls_and_server_names(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await run(admin, namespace.name, "grpc", "anybody", "grpcs")

    async def call(*arguments: str) -> str:
        script = (
            "printf '\\0\\0\\0\\0\\3abc' | curl -sS --http2 --cacert /certs/ca.crt --max-time 10 --data-binary @- "
            f'-H content-type:application/grpc "$@" https://web:{PORT}/x/Who | tail -c +6'
        )
        ran = await kit.execute(namespace.developer, namespace.name, "client", "sh", "-c", script, "sh", *arguments)
        return ran.stdout + ran.stderr

    async with engine(namespace.developer, tmp_path, "ada") as ada, HereTls(None, attach_grpc.Greeter) as here:
        more: dict[str, Any] = {"service": "web", "ports": {PORT: here.port}, "tls": Encryption(local="plain")}
        assert (await call("-H", "x-user: ada")).startswith("web-")
        found = await ada.attachments.attach(ada.wanted(here, **more, routes=(MINE,)), here)
        for _ in range(5):
            assert await call("-H", "x-user: ada") == "here"
            assert (await call()).startswith("web-")
        await ada.attachments.leave(found)
        assert (await call("-H", "x-user: ada")).startswith("web-")

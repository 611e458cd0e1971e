"""IPv6 at a cluster that has it: names, Services of each family, traffic in both directions, the link itself."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import ALL, personal
from devloop.protocol import State

from . import kit
from .attaching import PORT, SERVICE, Here, ask, client_pod, engine, objects_of, run_service, run_stateful
from .conftest import Namespace, Target
from .kit import ApiClient, client
from .kube import access
from .kube.routes import to_pods
from .kube.settings import IPV4, IPV6
from .project import Project, a_project
from .test_link_contract import FIRST, HOST, connected, run_target

MINE = ("-H", "baggage: devloop=ada")
# TCP at 8080 and UDP at 9125, in both families or, with a second argument, in IPv6 alone.
SERVE = """
import http.server, socket, sys, threading
name, alone = sys.argv[1].encode(), len(sys.argv) > 2
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", 8080
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(name)))
        self.end_headers()
        self.wfile.write(name)
    def log_message(self, *_): pass
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
udp.bind(("::", 9125))
threading.Thread(target=Server(("::", 8080), Echo).serve_forever).start()
while True:
    data, source = udp.recvfrom(70000)
    udp.sendto(name + data, source)
"""
LOOK_UP = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try: known = sorted({each[4][0] for each in socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM)})
        except socket.gaierror: known = []
        found[f"{name} {family.name}"] = known
print(json.dumps(found))
"""
FETCH = """
import json, sys, urllib.request
print(json.dumps([urllib.request.urlopen(url, timeout=15).read().decode() for url in sys.argv[1:]]))
"""
DATAGRAMS = """
import json, socket, sys
found = []
for host, port in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.connect((host, port))
    for size in (0, 1, 1400, 30000):
        s.send(b"x" * size)
        found.append(len(s.recv(70000)) - len("there"))
print(json.dumps(found))
"""
HERE = """
import http.server, socket
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"here")
    def log_message(self, *_): pass
Server(("::1", 8080), Answer).serve_forever()
"""


@pytest.fixture(autouse=True)
async def stacks(admin: ApiClient) -> list[int]:
    """The IP versions of the cluster's nodes; without IPv6 there is nothing to see here."""
    (node, *_) = (await client.CoreV1Api(admin).list_node()).items
    addresses = [each.address for each in node.status.addresses if each.type == "InternalIP"]
    found = sorted({6 if ":" in each else 4 for each in addresses})
    if 6 not in found:
        pytest.skip("the cluster's nodes have no IPv6 address: start one with DEVLOOP_TEST_FAMILIES=dual or ipv6")
    return found


@pytest.fixture
def project(namespace: Namespace, tmp_path: Path) -> Iterator[Project]:
    with a_project(tmp_path / "ada", namespace.developer, namespace.name) as made:
        (made.folder / "here.py").write_text(HERE)
        yield made


async def expose(admin: ApiClient, namespace: str, name: str, app: str, **spec: Any) -> Any:
    """A Service of that pod; the object."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    if spec.get("clusterIP") != "None":
        ports.append({"name": "udp", "port": 8125, "targetPort": 9125, "protocol": "UDP"})
    body = {"metadata": {"name": name}, "spec": {"selector": {"app": app}, "ports": ports, **spec}}
    return await client.CoreV1Api(admin).create_namespaced_service(namespace, body)


def configure(project: Project, before: str = "", more: str = "") -> None:
    python = json.dumps(sys.executable)
    project.config(
        f'{before}\n[services.web]\ncommand = [{python}, "here.py"]\nworkload = false\nwatch = []\n'
        'ports = { http = 8080 }\nready = { http = "/" }\n'
        f'[services.nodes]\ncommand = [{python}, "here.py"]\nmode = "remote"\nworkload = "pod/api"\nwatch = []\n'
        f'ports = {{ http = 8080 }}\nready = {{ http = "/" }}\nnames = ["nodes"]\n{more}'
    )


async def test_a_local_service_has_the_names_and_reaches_the_addresses_that_a_pod_has(
    admin: ApiClient, namespace: Namespace, project: Project, stacks: Sequence[int]
) -> None:
    space = namespace.name
    both = {"ipFamilyPolicy": "PreferDualStack"}
    pod, *_ = await asyncio.gather(
        kit.run_pod(admin, space, "api", ["python3", "-c", SERVE, "there"]),
        kit.run_pod(admin, space, "narrow", ["python3", "-c", SERVE, "there", "alone"]),
        client_pod(admin, space),
    )
    dual = await expose(admin, space, "dual", "api", **both)
    six = await expose(admin, space, "six", "api", ipFamilies=["IPv6"])
    await expose(admin, space, "nodes", "api", clusterIP="None", **both)
    narrow = await expose(admin, space, "narrow", "narrow", **both)
    await expose(admin, space, "plain", "api")
    names = ["dual", "six", "nodes", "narrow", "plain", f"six.{space}", f"nodes.{space}.svc.cluster.local"]

    async def of_a_pod() -> Any:
        ran = await kit.execute(namespace.developer, space, "client", "python3", "-c", LOOK_UP, *names)
        return json.loads(ran.stdout)

    async def of_web() -> Any:
        return json.loads((await project.run("web", "python3", "-c", LOOK_UP, *names)).line)

    await kit.eventually(lambda: kit_all(of_a_pod), True)
    configure(project)
    async with project.up() as running:
        await running.until_state("web", State.READY)  # it listens on ::1 alone
        await running.connected()
        expected = await of_a_pod()
        assert expected["six AF_INET6"] and expected["six AF_INET"] == []
        assert len(expected["dual AF_INET6"]) == 1
        assert await of_web() == expected

        pods = [each.ip for each in pod.status.pod_ips]
        literals = [f"http://[{each}]:80/" if ":" in each else f"http://{each}:80/" for each in dual.spec.cluster_ips]
        urls = [
            *literals,
            f"http://[{six.spec.cluster_ip}]/",
            *(f"http://[{each}]:8080/" if ":" in each else f"http://{each}:8080/" for each in pods),
            *(f"http://{each}/" for each in ("dual", "six", f"six.{space}.svc", "plain")),
            # In IPv6 alone: a pod's client would be refused in IPv4, if it is first, and go on.
            *(f"http://[{each}]/" for each in narrow.spec.cluster_ips if ":" in each),
        ]
        ran = await project.run("web", "python3", "-c", FETCH, *urls)
        assert json.loads(ran.line) == ["there"] * len(urls)
        where = [*((each, "8125") for each in dual.spec.cluster_ips), *((each, "9125") for each in pods)]
        ran = await project.run("web", "python3", "-c", DATAGRAMS, *(part for each in where for part in each))
        assert json.loads(ran.line) == [0, 1, 1400, 30000] * len(where)
        # What it listens on is published, in both families.
        port = running.services["web"].published["http"]
        mine = [f"http://{host}:{port}/" for host in ("127.0.0.1", "[::1]", "localhost")]
        assert await fetched(*mine) == ["here"] * 3
        # At the host's loopback the Service of a pod that listens in IPv6 alone, and one without an address.
        at_nodes = running.services["nodes"].published["http"]
        assert await fetched(f"http://127.0.0.1:{at_nodes}/") == ["there"]

        # A headless Service has no address that could lead here. Its name does, in the families that it has there.
        await project("toggle", "nodes")
        await running.until_state("nodes", State.READY)
        now = await of_web()
        moved = []
        for family, version in (("AF_INET", 4), ("AF_INET6", 6)):
            known = now[f"nodes {family}"]
            assert len(known) == len(expected[f"nodes {family}"]) == (version in stacks)
            moved += [f"http://[{each}]:8080/" if ":" in each else f"http://{each}:8080/" for each in known]
        ran = await project.run("web", "python3", "-c", FETCH, *moved)
        assert json.loads(ran.line) == ["here"] * len(moved)
        await project("toggle", "nodes")
        await running.until_state("nodes", State.REMOTE)
        assert await of_web() == expected


async def kit_all(ask_a_pod: Callable[[], Any]) -> bool:
    """Every name has an address: CoreDNS knows of all of them."""
    found = await ask_a_pod()
    names = {each.split()[0] for each in found}
    return all(any(known for each, known in found.items() if each.split()[0] == name) for name in names)


async def fetched(*urls: str) -> list[str]:
    """What this machine is answered."""
    ran = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FETCH, *urls, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, problem = await ran.communicate()
    assert ran.returncode == 0, problem.decode()
    return list(json.loads(out))


async def test_addresses_in_brackets_are_rewritten_to_ports_and_lead_where_they_did(
    admin: ApiClient, namespace: Namespace, project: Project
) -> None:
    space = namespace.name
    pod = await kit.run_pod(admin, space, "api", ["python3", "-c", SERVE, "there", "alone"])
    dual = await expose(admin, space, "dual", "api", ipFamilyPolicy="PreferDualStack")
    six = await expose(admin, space, "six", "api", ipFamilies=["IPv6"])
    await expose(admin, space, "nodes", "api", clusterIP="None", ipFamilyPolicy="PreferDualStack")
    own = next(each.ip for each in pod.status.pod_ips if ":" in each.ip)
    second = next(each for each in dual.spec.cluster_ips if ":" in each)
    env = {
        "SIX_URL": f"http://[{six.spec.cluster_ip}]:80/",
        "BARE_URL": f"http://[{second}]/",
        "POD_URL": f"http://[{own}]:8080/",
        # Its pod listens in IPv6 alone, and the name and the first address are IPv4's where there is that.
        "DUAL_URL": "http://dual/",
        "NODES_URL": "http://nodes:8080/",
    }
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in env.items())
    configure(project, '[project]\nname = "six"\nnetwork = "ports"\n', f"[services.web.env]\n{table}")
    async with project.up() as running:
        await running.until_state("web", State.READY)
        await running.connected()
        fetch = FETCH.replace("sys.argv[1:]", "map(__import__('os').environ.__getitem__, sys.argv[1:])")

        async def answers() -> Any:
            ran = await project.run("web", "python3", "-c", fetch, *env, code=None)
            return json.loads(ran.stdout or "0")

        await kit.eventually(answers, ["there"] * len(env), 30)


async def asked(space: Namespace, *hosts: str, mine: bool) -> list[str]:
    found = []
    for host in hosts:
        literal = f"[{host}]" if ":" in host else host
        found.append(await ask(space, *(MINE if mine else ()), service=literal))
    return found


@pytest.mark.parametrize("listen", ["", "::"], ids=["both", "ipv6-alone"])
async def test_an_intercept_of_a_service_with_two_families(
    admin: ApiClient, namespace: Namespace, tmp_path: Path, listen: str
) -> None:
    """The pods listen in both families or in IPv6 alone: the agent finds the address that they answer at."""
    space = namespace
    await asyncio.gather(
        run_service(admin, space.name, listen=listen, ip_family_policy="PreferDualStack"),
        client_pod(admin, space.name),
    )
    service = await client.CoreV1Api(admin).read_namespaced_service(SERVICE, space.name)
    addresses = service.spec.cluster_ips
    before = await objects_of(admin, space.name)
    async with Here() as here, engine(space.developer, tmp_path) as ada:
        found = await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),)), here)
        for _ in range(4):
            assert await asked(space, *addresses, mine=True) == ["here"] * len(addresses)
            originals = await asked(space, *addresses, mine=False)
            assert all(each.startswith("api-") for each in originals), originals
        # Whether it is one pod or two, each has its share once.
        here.set_running(False)

        async def original() -> bool:
            return all(each.startswith("api-") for each in await asked(space, *addresses, mine=True))

        await kit.eventually(original, True, 10)
        here.set_running(True)
        await ada.attachments.leave(found)
        assert all(each.startswith("api-") for each in await asked(space, addresses[-1], mine=True))
    assert await objects_of(admin, space.name) == before


async def test_an_intercept_of_a_service_of_ipv6_and_the_connections_from_before(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace

    async def run(pod: str, container: str, command: Sequence[str]) -> bytes:
        return (await kit.execute(space.developer, space.name, pod, *command)).stdout.encode()

    await asyncio.gather(
        run_service(admin, space.name, ip_families=["IPv6"]),
        client_pod(admin, space.name),
    )
    from .test_attach_earlier import load, seen

    async with Here() as here, engine(space.developer, tmp_path, run=run) as ada:
        kept = load(space, connections=3, rate=9)
        await kit.eventually(lambda: ask_is_original(space), True)

        async def there() -> int:
            ran = await kit.execute(space.developer, space.name, "client", "cat", "/proc/net/tcp6")
            lines = [line.split() for line in ran.stdout.splitlines()[1:]]
            return sum(each[3] == "01" and each[2].endswith(f":{PORT:04X}") for each in lines)

        await kit.eventually(there, 3)
        found = await ada.attachments.attach(ada.wanted(here, routes=(ALL,)), here)
        await kit.eventually(lambda: ask(space), "here")
        await asyncio.wait_for(found.looked.wait(), 20)
        assert found.earlier == (("client", 3),)
        moved = await ada.attachments.move(found)
        assert (moved.ended, moved.left) == (3, ())
        told = await kept.stop()
        assert told["failed"] == 0 and told["counts"]["here"] > 0
        await seen(found, ())
        await ada.attachments.leave(found)
        assert await ask_is_original(space)


async def ask_is_original(space: Namespace) -> bool:
    return (await ask(space)).startswith("api-")


@pytest.mark.parametrize("listen", ["", "::"], ids=["both", "ipv6-alone"])
async def test_an_intercept_in_the_pods(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path, listen: str
) -> None:
    space, name = open_namespace, "web"
    await asyncio.gather(run_stateful(admin, space.name, name, listen=listen), client_pod(admin, space.name))
    pods = (await client.CoreV1Api(admin).list_namespaced_pod(space.name, label_selector=f"app={name}")).items
    who = {each.ip: pod.metadata.name for pod in pods for each in pod.status.pod_ips if not listen or ":" in each.ip}
    async with Here() as here, engine(space.developer, tmp_path) as ada:
        wanted = ada.wanted(here, service=name, routes=(personal("ada"),), way="pods")
        found = await ada.attachments.attach(wanted, here)
        for _ in range(3):
            assert await asked(space, *who, mine=True) == ["here"] * len(who)
            assert await asked(space, *who, mine=False) == list(who.values())
        here.set_running(False)
        await kit.eventually(lambda: asked(space, *who, mine=True), list(who.values()), 10)
        here.set_running(True)
        await ada.attachments.leave(found)
        assert await asked(space, *who, mine=True) == list(who.values())


async def test_the_link_by_the_api_servers_ipv6_address_and_straight_to_a_pods(
    cluster: Target, admin: ApiClient, namespace: Namespace, tmp_path: Path, stacks: Sequence[int]
) -> None:
    own = cluster.need_own("The API server's IPv6 address, and a route to the pods")
    await run_target(admin, namespace.name)
    config = access.with_server(cluster.read(namespace.developer), own.settings.server_by(IPV6))
    by_six = cluster.kubeconfig("ipv6", config)
    gateway = own.settings.node_ip_of(IPV6)
    for way in ("portforward", "agent"):
        async with connected(by_six, tmp_path, way, direct=way == "agent") as link:
            reader, writer = await link_streams(link, HOST, FIRST)
            writer.write(b"ping\n")
            assert await asyncio.wait_for(reader.read(5), 10)
            writer.close()
            if way == "agent":
                # A VPN that leads to the pods' IPv6 addresses and to none of IPv4.
                with to_pods(gateway):
                    await kit.eventually(lambda: direct_by(link, "["), True, 30)
                if 4 in stacks:
                    with to_pods(own.settings.node_ip_of(IPV4)):
                        await kit.eventually(lambda: direct_by(link, "10.244."), True, 30)


async def direct_by(link: Any, start: str) -> bool:
    return bool(link.state.direct) and link.state.direct.startswith(start)


async def link_streams(link: Any, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection through the link, as streams."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await link.connect(lambda: protocol, host, port)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

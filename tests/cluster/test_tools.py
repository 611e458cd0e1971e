"""Tools that know nothing of devloop, under `devloop exec`: each with a resolver and a network stack of its own.

Issue 4's third demonstration. Where a tool is in the image too, what it prints in the pod is the measure.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from devloop.protocol import State

from . import kit
from .conftest import Target, a_namespace, unavailable
from .kit import client
from .project import Project, Ran, a_project
from .test_workload import Place

# The servers take seconds to start: one set for all the tests here, which therefore share a loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

PACKAGES = {"dig": "bind9-dnsutils", "psql": "postgresql-client", "redis-cli": "redis-tools", "node": "nodejs"}
PACKAGES |= {"go": "golang", "curl": "curl", "getent": "libc-bin"}
NOBODY = 65534
PASSWORD = "pass word"
DATABASE = f"""
PATH=/usr/lib/postgresql/15/bin:$PATH
printf '%s' '{PASSWORD}' >/tmp/password
initdb -D /tmp/data -U app -A scram-sha-256 --pwfile=/tmp/password -E UTF8
echo 'host all all all scram-sha-256' >>/tmp/data/pg_hba.conf
exec postgres -D /tmp/data -k /tmp -c listen_addresses='*'
"""
CONFIG = """
[dns]
remote = ["vpc.test"]

[services.web]
command = ["{python}", "-m", "http.server", "8080"]
workload = "pod/tools"
ports = {{ http = 8080 }}
watch = []
"""


@dataclass(frozen=True)
class Tools:
    """A project that is up, and the pod that its service stands for."""

    project: Project
    developer: Path
    namespace: str
    addresses: dict[str, str]

    @property
    def zone(self) -> str:
        return f"{self.namespace}.svc.cluster.local"

    @property
    def names(self) -> list[str]:
        """Those of the pod of `cache`, backwards: it is behind a Service too."""
        dashed = self.addresses["pod"].replace(".", "-")
        return [f"{dashed}.cache.{self.zone}", f"one.nodes.{self.zone}"]

    async def here(self, *argv: str, code: int | None = 0) -> Ran:
        """As `devloop exec` runs it."""
        if shutil.which(argv[0]) is None:
            unavailable(f"there is no {argv[0]} (Debian: {PACKAGES[argv[0]]})")
        return await self.project.run("web", *argv, code=code)

    async def there(self, *argv: str) -> kit.Ran:
        """As `kubectl exec` runs it in the pod."""
        return await kit.execute(self.developer, self.namespace, "tools", *argv)

    async def same(self, commands: Iterable[Sequence[str]], code: int = 0) -> None:
        """Each command prints the same here as there, and ends with this exit code in both."""
        commands = list(commands)
        script = "".join(f"{shlex.join(each)}\nprintf '\\000%s\\000' $?\n" for each in commands)
        await self.here(commands[0][0], "-h" if commands[0][0] == "dig" else "--help", code=None)  # is it there?
        near = (await self.project.run("web", "sh", "-c", script)).stdout.split("\0")
        far = (await self.there("sh", "-c", script)).stdout.split("\0")
        for number, each in enumerate(commands):
            for side in (far, near):
                assert side[2 * number + 1] == str(code), (each, side[2 * number])
            # Of several records each may come first.
            mine, theirs = (sorted(side[2 * number].splitlines()) for side in (near, far))
            assert mine == theirs, each


async def expose(admin: kit.ApiClient, namespace: str, name: str, port: int, **spec: Any) -> str:
    """A Service; its address."""
    core = client.CoreV1Api(admin)
    ports = [{"name": "main", "port": port}]
    body = {"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": ports, **spec}}
    made = await core.create_namespaced_service(namespace, body)
    address: str = made.spec.cluster_ip or ""
    return address


async def deploy(place: Place) -> dict[str, str]:
    """A database, a cache, a page, and the pod that stands beside them; where each is."""
    found = {
        "cache": await expose(place.admin, place.name, "cache", 6379),
        "db": await expose(place.admin, place.name, "db", 5432),
        "page": await expose(place.admin, place.name, "page", 80, ports=[{"port": 80, "targetPort": 8080}]),
    }
    await expose(place.admin, place.name, "nodes", 6379, clusterIP="None", selector={"app": "cache"})
    await expose(place.admin, place.name, "outside", 1, type="ExternalName", externalName="node.vpc.test")

    def ready(port: int) -> dict[str, Any]:
        return {"tcpSocket": {"port": port}, "periodSeconds": 1}

    cache = {"command": ["redis-server", "--protected-mode", "no"], "readinessProbe": ready(6379)}
    database = {"command": ["sh", "-ec", DATABASE], "readinessProbe": ready(5432)}
    serve = "mkdir /tmp/page && cd /tmp/page && echo 'from the pod' >index.html && exec python3 -m http.server 8080"
    page = {"command": ["sh", "-ec", serve], "readinessProbe": ready(8080)}
    aliases = [{"ip": found["cache"], "hostnames": ["cache.alias", "second.alias"]}]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(place.pod("cache", cache, hostname="one", subdomain="nodes"))
        tasks.create_task(place.pod("db", database, user=NOBODY))
        tasks.create_task(place.pod("page", page))
        tasks.create_task(place.pod("tools", hostAliases=aliases))
    pod = await client.CoreV1Api(place.admin).read_namespaced_pod("cache", place.name)
    return {**found, "pod": pod.status.pod_ip}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools(cluster: Target, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tools]:
    async with kit.connect(cluster.admin) as admin, a_namespace(cluster, admin, "restricted") as namespace:
        addresses = await deploy(Place(admin, namespace))
        folder = tmp_path_factory.mktemp("ada")
        with a_project(folder, namespace.developer, namespace.name) as project:
            project.config(CONFIG.format(python=sys.executable))
            async with project.up() as running:
                await running.until_state("web", State.READY)
                await running.connected()
                made = Tools(project, namespace.developer, namespace.name, addresses)

                async def resolves() -> bool:
                    # CoreDNS hears of new objects a moment later.
                    asked = [await made.there("getent", "hosts", each) for each in ("page", "one.nodes", "outside")]
                    return all(each.code == 0 for each in asked)

                await kit.eventually(resolves, True)
                yield made
                assert running.services["web"].restarts == 0


async def test_getent(tools: Tools) -> None:
    """libc's own resolver: search domains, ndots, the hosts file."""
    names = ["page", f"page.{tools.namespace}", f"page.{tools.zone}", f"page.{tools.zone}.", "nodes", "one.nodes"]
    names += ["outside", "node.vpc.test", "cache.alias", "second.alias", "kubernetes.default", tools.addresses["page"]]
    await tools.same(["getent", database, name] for name in names for database in ("hosts", "ahostsv4"))
    missing = ("nobody", f"nobody.{tools.zone}", "page.no-such-namespace")
    await tools.same((["getent", "hosts", name] for name in missing), code=2)


async def test_dig(tools: Tools) -> None:
    """A resolver that speaks DNS itself, by UDP and TCP, to whichever server."""
    zone = tools.zone
    backward = f"{'.'.join(reversed(tools.addresses['pod'].split('.')))}.in-addr.arpa"
    questions: list[list[str]] = [
        ["+short", "+search", "page"],
        ["+short", f"page.{zone}"],
        ["+short", "+tcp", f"page.{zone}"],
        ["+short", "AAAA", f"page.{zone}"],
        ["+short", "SRV", f"_main._tcp.cache.{zone}"],
        ["+short", "SRV", f"_main._tcp.nodes.{zone}"],
        ["+short", "-x", tools.addresses["page"]],
        ["+short", "PTR", backward],
        ["+short", f"one.nodes.{zone}"],
        ["+short", f"outside.{zone}"],
        ["+noall", "+answer", "+nottlid", f"outside.{zone}"],
        ["+noall", "+answer", "+nottlid", f"page.{zone}"],
    ]
    await tools.same(["dig", "+tries=1", "+timeout=5", *each] for each in questions)
    # NXDOMAIN, and no timeout.
    ran = await tools.here("dig", "+tries=1", "+timeout=5", f"nobody.{zone}")
    assert "status: NXDOMAIN" in ran.stdout
    # It makes no difference who is asked.
    ran = await tools.here("dig", "+short", "+tries=1", "+timeout=5", "@192.0.2.1", f"page.{zone}")
    assert ran.stdout.split() == [tools.addresses["page"]]


async def test_redis_cli(tools: Tools) -> None:
    assert (await tools.here("redis-cli", "-h", "cache", "set", "greeting", "from here")).stdout == "OK\n"
    assert (await tools.there("redis-cli", "-h", "cache", "get", "greeting")).stdout == "from here\n"
    # By the pod's own name and address, and by the pod's hosts file.
    for host in ("one.nodes", tools.addresses["pod"], "cache.alias"):
        assert (await tools.here("redis-cli", "-h", host, "get", "greeting")).stdout == "from here\n", host


async def test_psql(tools: Tools) -> None:
    url = f"postgresql://app:{PASSWORD.replace(' ', '%20')}@db/postgres"
    query = "select count(*), sum(number) from generate_series(1, 100000) as number"
    ran = await tools.here("psql", url, "-XAtc", query)
    assert ran.stdout == "100000|5000050000\n"
    # Megabytes in one answer.
    ran = await tools.here("psql", url, "-XAtc", "select repeat('x', 3000000)")
    assert ran.stdout == "x" * 3_000_000 + "\n"
    ran = await tools.here("psql", url.replace("app:pass", "app:wrong"), "-XAtc", query, code=2)
    assert "password authentication failed" in ran.stderr


GO = """
package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	name, zone, pod := os.Args[1], os.Args[2], os.Args[3]
	resolver := &net.Resolver{PreferGo: true}
	ctx := context.Background()
	_, srv, err := resolver.LookupSRV(ctx, "main", "tcp", "cache."+zone)
	must(srv, err)
	names := must(resolver.LookupAddr(ctx, pod))
	sort.Strings(names)
	_, missing := resolver.LookupHost(ctx, "nobody."+zone)
	answer := must(http.Get("http://" + name))
	body := must(io.ReadAll(answer.Body))
	must(0, json.NewEncoder(os.Stdout).Encode(map[string]any{
		"host":    must(resolver.LookupHost(ctx, name)),
		"alias":   must(resolver.LookupHost(ctx, "cache.alias")),
		"srv":     srv[0],
		"names":   names,
		"missing": missing.(*net.DNSError).IsNotFound,
		"page":    string(body),
	}))
}
"""


@pytest.fixture(scope="module")
def static_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Go program with no libc in it, and Go's own resolver."""
    tool = shutil.which("go")
    if tool is None:
        unavailable(f"there is no go (Debian: {PACKAGES['go']})")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO)
    environ = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": ""}
    command = [str(tool), "build", "-tags", "netgo", "-o", str(folder / "lookup"), "main.go"]
    subprocess.run(command, cwd=folder, env=environ, check=True)
    return folder / "lookup"


async def test_a_static_binary_with_a_resolver_of_its_own(tools: Tools, static_binary: Path) -> None:
    for name in ("page", f"page.{tools.namespace}"):
        ran = await tools.here(str(static_binary), name, tools.zone, tools.addresses["pod"])
        assert json.loads(ran.stdout) == {
            "host": [tools.addresses["page"]],
            "alias": [tools.addresses["cache"]],
            "srv": {"Target": f"cache.{tools.zone}.", "Port": 6379, "Priority": 0, "Weight": 100},
            "names": [f"{each}." for each in tools.names],
            "missing": True,
            "page": "from the pod\n",
        }


NODE = """
const dns = require("node:dns").promises;
const [zone, pod] = process.argv.slice(1);
(async () => console.log(JSON.stringify({
  lookup: (await dns.lookup("page")).address,
  alias: (await dns.lookup("cache.alias")).address,
  resolve: await dns.resolve4("page." + zone),
  srv: await dns.resolveSrv("_main._tcp.cache." + zone),
  names: (await dns.reverse(pod)).sort(),
  missing: (await dns.resolve4("nobody." + zone).catch((error) => error)).code,
  page: await (await fetch("http://page")).text(),
})))();
"""


async def test_node(tools: Tools) -> None:
    """libuv asks libc; `dns.resolve` is c-ares, which reads resolv.conf itself; fetch is undici."""
    ran = await tools.here("node", "-e", NODE, tools.zone, tools.addresses["pod"])
    assert json.loads(ran.stdout) == {
        "lookup": tools.addresses["page"],
        "alias": tools.addresses["cache"],
        "resolve": [tools.addresses["page"]],
        "srv": [{"name": f"cache.{tools.zone}", "port": 6379, "priority": 0, "weight": 100}],
        "names": tools.names,
        "missing": "ENOTFOUND",
        "page": "from the pod\n",
    }


@contextmanager
def serving(address: str) -> Iterator[int]:
    """A server of this machine's own, on one of its addresses; its port."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"from the host\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    with Server((address, 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def own_address() -> str:
    """One of this machine's addresses that is not on its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))  # sends nothing; the kernel chooses the address
        address: str = sock.getsockname()[0]
        return address


async def test_the_host_stays_reachable(tools: Tools) -> None:
    with serving(own_address()) as port:
        assert (await tools.here("curl", "-s", f"http://{own_address()}:{port}")).stdout == "from the host\n"


@pytest.mark.parametrize(
    ("address", "host"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("::1", "[::1]")]
)
async def test_what_listens_on_the_hosts_localhost_is_on_the_services(tools: Tools, address: str, host: str) -> None:
    with serving(address) as port:
        # The host's ports are looked at four times a second.
        ran = await tools.here("curl", "-s", "--retry", "10", "--retry-connrefused", f"http://{host}:{port}")
        assert ran.stdout == "from the host\n"
    # And what is not there is refused, as everywhere (curl's exit code 7).
    await tools.here("curl", "-s", "--retry", "0", f"http://{host}:1", code=7)


async def test_its_own_localhost_comes_first(tools: Tools) -> None:
    """The service listens on 8080 inside; whatever the host has there, on either family."""
    with serving("127.0.0.1") as port:
        for family, address in (("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")):
            own = f"""
import socket
server = socket.socket(socket.{family})
server.bind(("{address}", {port}))
server.listen()
client = socket.create_connection(("{address}", {port}))
server.accept()[0].sendall(b"from inside")
print(client.recv(100).decode())
"""
            assert (await tools.here(sys.executable, "-c", own)).stdout == "from inside\n"
    ran = await tools.here("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://localhost:8080/")
    assert ran.stdout == "200"

"""Names, as programs with different resolvers see them: glibc, dig, Go's own, Node's, curl."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from devloop.net.dns import DnsServer, Record, Resolver
from devloop.net.mounts import Bind
from devloop.net.publish import Publisher
from devloop.net.router import ToService
from tests import needs
from tests.integration.net.conftest import Cluster, Pod
from tests.integration.net.scripts import HTTP
from tests.unit.net.fakes import FakeUpstream, Zone

pytestmark = pytest.mark.slow

API = "api.shop.svc.cluster.local"
RESOLV = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n"
GO = """package main
import ("fmt"; "io"; "net"; "net/http"; "os")
func main() {
  addrs, err := net.LookupHost(os.Args[1])
  fmt.Println(addrs, err)
  r, err := http.Get("http://" + os.Args[1] + ":8080/")
  if err != nil { fmt.Println(err); os.Exit(1) }
  b, _ := io.ReadAll(r.Body)
  fmt.Println(string(b))
}
"""
NODE = """
require('dns').resolveSrv('_http._tcp.api.shop.svc.cluster.local', (e, r) => {
  console.log(e ? e.code : JSON.stringify(r));
  require('http').get('http://api:8080/', s => { s.on('data', d => console.log(d.toString())) })
    .on('error', e => console.log(e.code));
});
"""


class Named:
    """Two services: `web`, where everything is asked, and `api`, which listens on 8080."""

    def __init__(self, web: Pod, api: Pod, zone: Zone, upstream: FakeUpstream) -> None:
        self.web = web
        self.api = api
        self.zone = zone
        self.upstream = upstream


@pytest.fixture
async def named(cluster: Cluster, shared: Path) -> AsyncIterator[Named]:
    web, api = await cluster.pod("web"), await cluster.pod("api")
    files = {  # hosts too: this machine's may know the names that are asked for here
        "resolv.conf": RESOLV,
        "nsswitch.conf": "passwd: files\nhosts: files dns\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    }
    for name, text in files.items():
        (shared / name).write_text(text)
    mounted = await web.inside.mount([Bind(str(shared / name), f"/etc/{name}") for name in files])
    assert not mounted.failed
    zone, upstream = Zone(), FakeUpstream()
    zone.set(API, Record("A", "10.96.0.7"), Record("AAAA", "fd00:10:96::7"))
    zone.set(f"_http._tcp.{API}", Record("SRV", f"0 50 8080 {API}."))
    upstream.set("example.com.", 60, "A", "192.0.2.80")
    resolver = Resolver(zone, upstream)
    server = DnsServer(web.inside.dns_udp, web.inside.dns_tcp, resolver)
    await server.start()
    await api.serve(HTTP % ("api", 8080), 8080)
    await web.serve(HTTP % ("web", 8080), 8080)
    for address in ("10.96.0.7", "fd00:10:96::7"):
        cluster.router.targets[address, 8080] = ToService(api.publisher, 8080)
    yield Named(web, api, zone, upstream)
    await server.close()
    await resolver.close()


async def test_curl_by_short_name_over_both_families(named: Named) -> None:
    curl = needs.program("curl")
    for flag in ("-4", "-6"):
        done = await named.web.run(curl, "-sS", flag, "http://api:8080/")
        assert done.out.startswith("api "), done.err
    # Two services on the same port: its own is on its localhost.
    done = await named.web.run(curl, "-sS", "http://localhost:8080/")
    assert done.out.startswith("web "), done.err


async def test_getent(named: Named) -> None:
    needs.program("getent")
    done = await named.web.run("getent", "ahostsv4", "api.shop")
    assert done.out.split()[:2] == ["10.96.0.7", "STREAM"]
    done = await named.web.run("getent", "hosts", "nobody")
    assert done.code == 2
    assert (await named.web.run("getent", "ahostsv4", "example.com")).out.startswith("192.0.2.80")
    assert "example.com. A" in named.upstream.asked
    assert not any("cluster.local" in question for question in named.upstream.asked)


@pytest.mark.parametrize("server", ["127.0.0.1", "::1", "10.96.0.10", "8.8.8.8", "2001:4860:4860::8888"])
@pytest.mark.parametrize("way", ["+notcp", "+tcp"])
async def test_dig_at_any_server(named: Named, server: str, way: str) -> None:
    done = await named.web.run(needs.program("dig"), f"@{server}", way, "+short", "+time=3", "+tries=1", API)
    assert done.out.strip() == "10.96.0.7", done.out + done.err


async def test_dig_gets_large_answers_over_tcp(named: Named) -> None:
    named.zone.set("many.cluster.local", *(Record("A", f"10.9.{n // 250}.{n % 250}") for n in range(300)))
    done = await named.web.run(needs.program("dig"), "+short", "many.cluster.local")
    assert len(done.out.splitlines()) == 300


@pytest.fixture(scope="session")
def lookup() -> Iterator[Path]:
    """A static Go program, with Go's own resolver."""
    go = needs.program("go")
    folder = Path(tempfile.mkdtemp(prefix="devloop-net-go-"))
    folder.chmod(0o755)
    (folder / "main.go").write_text(GO)
    environ = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off"}
    subprocess.run([go, "build", "-o", "lookup", "main.go"], check=True, env=environ, cwd=folder)
    yield folder / "lookup"
    shutil.rmtree(folder)


async def test_a_static_go_binary_with_its_own_resolver(named: Named, lookup: Path) -> None:
    done = await named.web.run(str(lookup), "api")
    assert "10.96.0.7" in done.out, done.out + done.err
    assert "fd00:10:96::7" in done.out
    assert done.out.splitlines()[1].startswith("api ")


async def test_node(named: Named) -> None:
    done = await named.web.run(needs.program("node"), "-e", NODE)
    lines = done.out.splitlines()
    assert '"port":8080' in lines[0], done.out + done.err
    assert lines[1].startswith("api ")


async def test_a_toggle_is_effective_for_the_next_connection(named: Named, cluster: Cluster) -> None:
    get = "import urllib.request as u; print(u.urlopen('http://api:8080/').read().decode().split()[0])"
    assert await named.web.python(get) == "api"
    other = await cluster.pod("cluster-api")
    await other.serve(HTTP % ("remote", 8080), 8080)
    target: Publisher = other.publisher
    cluster.router.targets["10.96.0.7", 8080] = cluster.router.targets["fd00:10:96::7", 8080] = ToService(target, 8080)
    assert await named.web.python(get) == "remote"
    named.zone.set(API, Record("A", "10.96.0.8"))
    named.zone.answers.pop((API, "AAAA"))
    cluster.router.targets["10.96.0.8", 8080] = ToService(named.api.publisher, 8080)
    assert await named.web.python(get) == "api"

"""The engine's half of a tunnel, in a process of its own: a namespace, its proxy and DNS, and a link to the agent.

`python -m benchmarks.tunnel_engine REMOTE KEY_FILE POD_ADDRESS agent|direct|ssh`. REMOTE is a kubeconfig, or for `ssh`
a configuration of OpenSSH's client that knows a host `node`. `agent` goes by the API server alone. Each line of stdin
is the arguments of a client, as JSON; it runs in the namespace, and its output is a line of stdout.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path

import uvloop

from benchmarks.tunnel_programs import CLIENT, SERVER_PORT
from devloop.engine.names import Names
from devloop.net.dns import DnsServer, Resolver
from devloop.net.router import ToLink
from devloop.net.upstream import HostResolvers
from devloop.remote.kubernetes.agent import KubernetesLink
from devloop.remote.kubernetes.kubeconfig import Kubeconfig
from devloop.remote.life import LiveLink
from devloop.remote.ssh import ssh_link
from devloop.remote.standing import Domain, Standings
from tests.integration.net.conftest import SYSTEM_PYTHON, Pod, Table

ADDRESS = "10.96.0.1"
"""Where a client in the namespace finds the server; its port is the server's own."""


async def main(remote: Path, key_file: Path, pod_address: str, way: str) -> None:
    link: LiveLink
    if way == "ssh":
        link = ssh_link("node", config=[remote])
    else:
        link = KubernetesLink(Kubeconfig(remote), key_file=key_file, way="agent", direct=way == "direct")
    link.start()
    await link.ready(60)
    if isinstance(link, KubernetesLink) and way == "direct":
        await link.best()
        if not link.state.direct:
            await link.close()
            raise SystemExit("the agent's pod is not reached")
    search = (await link.resolver()).search if way != "ssh" else ()
    standings = Standings((), {}, Domain.of(search[0].partition(".")[0], search) if search else Domain(""))
    resolver = Resolver(Names(link, lambda: standings, lambda service: False, ()), HostResolvers())
    router = Table()
    router.targets[ADDRESS, SERVER_PORT] = ToLink(link, pod_address, SERVER_PORT)
    pod = Pod("bench", router, ordinary=True)
    await pod.open()
    dns = DnsServer(pod.inside.dns_udp, pod.inside.dns_tcp, resolver)
    await dns.start()
    gc.freeze()  # as the engine does, once it is connected
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        done = await pod.run(SYSTEM_PYTHON, "-I", "-S", "-c", CLIENT, *json.loads(line))
        print(json.dumps([done.code, done.out, done.err]), flush=True)
    await dns.close()
    await resolver.close()
    await pod.close()
    await link.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))

"""Figures of the transparent proxy beside a plain loopback connection: `python -m tests.integration.net.bench`.

The client runs in the namespace, the server on the host; "plain" is the same client on the host, at the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path

from devloop.net.host import HostPorts
from devloop.net.router import Dial, ToService
from tests.integration.net.conftest import SYSTEM_PYTHON, Cluster

SERVER = """
import selectors, socket, sys, threading
listen = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listen.getsockname()[1], flush=True)
def bulk(conn):
    data = bytes(1 << 20)
    try:
        while True: conn.sendall(data)
    except OSError: pass
selector = selectors.DefaultSelector()
selector.register(listen, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listen:
            conn, _ = listen.accept()
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(conn, selectors.EVENT_READ)
            continue
        conn = key.fileobj
        try: data = conn.recv(65536)
        except OSError: data = b""
        if data == b"BULK":
            selector.unregister(conn)
            threading.Thread(target=bulk, args=(conn,), daemon=True).start()
        elif data: conn.sendall(data)
        else:
            selector.unregister(conn)
            conn.close()
"""

CLIENT = """
import json, socket, sys, time
address, rounds = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
def connect():
    s = socket.create_connection(address)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s
start = time.perf_counter()
for _ in range(rounds):
    with connect() as s:
        s.sendall(b"x")
        s.recv(1)
connections = rounds / (time.perf_counter() - start)
with connect() as s:
    trips = []
    for _ in range(rounds * 2):
        begin = time.perf_counter_ns()
        s.sendall(b"x")
        s.recv(1)
        trips.append(time.perf_counter_ns() - begin)
trips.sort()
with connect() as s:
    s.sendall(b"BULK")
    got, buffer, start = 0, bytearray(1 << 20), time.perf_counter()
    while (spent := time.perf_counter() - start) < rounds / 1000: got += s.recv_into(buffer)
print(json.dumps({"connections": connections, "p50": trips[len(trips) // 2] / 1e3,
    "p99": trips[len(trips) * 99 // 100] / 1e3, "MB": got / spent / 1e6}))
"""


async def measure(rounds: int) -> None:
    cluster = Cluster()
    server = subprocess.Popen([SYSTEM_PYTHON, "-c", SERVER], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    hosts = HostPorts()
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        web, api = await cluster.pod("web"), await cluster.pod("api")
        await hosts.add(web.inside, lambda: ())
        cluster.router.targets["10.96.0.1", 80] = Dial("127.0.0.1", int(port))
        cluster.router.targets["10.96.0.2", 80] = ToService(api.publisher, 8080)
        await api.start(SYSTEM_PYTHON, "-c", SERVER.replace('"127.0.0.1", 0', '"", 8080'))
        await api.until_listening(8080)
        arguments = (SYSTEM_PYTHON, "-I", "-c", CLIENT)
        plain = await asyncio.to_thread(
            subprocess.run, [*arguments, "127.0.0.1", port, str(rounds)], capture_output=True, text=True, check=True
        )
        show("plain loopback", plain.stdout)
        for name, address, number in (
            ("inside, own localhost", "127.0.0.1", "8080"),
            ("proxy, to the host", "10.96.0.1", "80"),
            ("proxy, host's localhost", "127.0.0.1", port),
            ("proxy, local service", "10.96.0.2", "80"),
        ):
            pod = api if "own" in name else web
            done = await pod.run(*arguments, address, number, str(rounds))
            assert done.code == 0, done.err
            show(name, done.out)
        starts = []
        for _ in range(10):
            begin = asyncio.get_running_loop().time()
            await cluster.pod("more")
            starts.append((asyncio.get_running_loop().time() - begin) * 1e3)
        print(f"a namespace, with the start of its process: {statistics.median(starts):.1f} ms")
    finally:
        await hosts.close()
        for pod in cluster.pods:
            await pod.close()
        server.kill()
        server.wait()


def show(name: str, text: str) -> None:
    got = json.loads(text)
    print(
        f"{name:26} {got['connections']:8.0f} connections/s  p50 {got['p50']:6.1f} µs  p99 {got['p99']:6.1f} µs"
        f"  {got['MB']:6.0f} MB/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    rounds = 300 if parser.parse_args().quick else 3000
    if Path("/tmp/quiet").exists():
        sys.exit("somebody measures: /tmp/quiet")
    asyncio.run(measure(rounds))


if __name__ == "__main__":
    main()

"""Both sides of `test_takeover.py`: run in a network namespace of its own, where it may do what a container with
NET_ADMIN may, it serves, has a client in another namespace, and moves that client's connections.

    takeover_inside.py (bulk|grpc|http) (4|6)      prints what has come of it, as JSON
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

from devloop.agent import diag, mover
from devloop.agent.between import Crowd
from devloop.agent.takeover import Takeover

HOSTS = {"4": ("10.77.0.2", "10.77.0.3", "24"), "6": ("fd77::2", "fd77::3", "64")}
PORT = 9090
MODULE = "tests.integration.remote.takeover_inside"
BULK_BYTES = 48 << 20
KEPT: list[Any] = []
"""A server of grpcio ends with its last reference."""


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def network(process: object) -> Path:
    return Path(f"/proc/{process}/ns/net").readlink()


def serve_bulk(family: socket.AddressFamily, host: str) -> None:
    """Each connection hears again what it says."""
    server = socket.create_server((host, PORT), family=family)

    def echo(made: socket.socket) -> None:
        while data := made.recv(1 << 16):
            made.sendall(data)
        made.close()

    def work() -> None:
        while True:
            threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=work, daemon=True).start()


def ask_bulk(host: str) -> dict[str, Any]:
    """More than fits anywhere, both ways at a time."""
    made = socket.create_connection((host, PORT))
    said, heard = hashlib.sha256(), hashlib.sha256()

    def say() -> None:
        for number in range(BULK_BYTES >> 16):
            data = hashlib.sha256(b"%d" % number).digest() * 2048
            said.update(data)
            made.sendall(data)
            time.sleep(0.002)
        made.shutdown(socket.SHUT_WR)

    saying = threading.Thread(target=say)
    saying.start()
    print("connected", flush=True)
    number = 0
    while data := made.recv(1 << 16):
        heard.update(data)
        number += len(data)
    saying.join()
    return {"bytes": number, "same": said.digest() == heard.digest()}


def serve_grpc(host: str) -> None:
    import grpc

    def one(data: bytes, context: Any) -> bytes:
        return str(context.peer()).encode()

    def count(data: bytes, context: Any) -> Any:
        while json.loads(data) > 0:
            yield str(context.peer()).encode()
            time.sleep(0.05)

    calls = {"One": grpc.unary_unary_rpc_method_handler(one), "Count": grpc.unary_stream_rpc_method_handler(count)}
    server = grpc.server(futures.ThreadPoolExecutor(40))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", calls),))
    server.add_insecure_port(f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}")
    server.start()
    KEPT.append(server)


def ask_grpc(host: str) -> dict[str, Any]:
    """Calls in threads on one channel, and a stream, until there is a line on stdin."""
    import grpc

    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.insecure_channel(f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}", options)
    one, count = channel.unary_unary("/a.B/One"), channel.unary_stream("/a.B/Count")
    over = threading.Event()
    peers: list[str] = []
    failed: list[str] = []

    def work() -> None:
        while not over.is_set():
            try:
                peers.append(one(b"", timeout=20).decode())
            except grpc.RpcError as problem:
                failed.append(str(problem)[:300])

    stream = count(b"1")
    streamed = [next(stream).decode()]
    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    time.sleep(0.5)
    print("connected", flush=True)
    while not sys.stdin.readline():
        pass
    streamed += [next(stream).decode() for _ in range(10)]
    over.set()
    for each in threads:
        each.join()
    stream.cancel()
    last = one(b"", timeout=20).decode()
    return {"failed": failed, "first": peers[0], "last": last, "streamed": sorted(set(streamed)), "calls": len(peers)}


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = str(self.client_address[1]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def serve_http(family: socket.AddressFamily, host: str) -> None:
    class Server(socketserver.ThreadingTCPServer):
        address_family = family
        daemon_threads = True

    threading.Thread(target=Server((host, PORT), Answer).serve_forever, daemon=True).start()


def ask_http(host: str) -> dict[str, Any]:
    """Requests without a pause on one connection, and on the next one when its server says so."""
    ends: list[str] = []
    made = http.client.HTTPConnection(host, PORT, timeout=20)
    said = False
    until = time.monotonic() + 60
    while len(set(ends)) < 2 and time.monotonic() < until:
        made.request("GET", "/")
        answer = made.getresponse()
        ends.append(answer.read().decode())
        if answer.will_close:
            made.close()
        if not said:
            print("connected", flush=True)
            said = True
    return {"connections": len(set(ends)), "requests": len(ends)}


def main() -> None:
    kind, version = sys.argv[1:3]
    own, other, bits = HOSTS[version]
    if len(sys.argv) > 3:  # the client, in the other namespace
        sys.stdin.readline()
        said = {"bulk": ask_bulk, "grpc": ask_grpc, "http": ask_http}[kind](own)
        print(json.dumps(said), flush=True)
        os._exit(0)  # threads of grpcio's stay otherwise
    command = ("unshare", "--net", sys.executable, "-m", MODULE, kind, version, "client")
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin is not None and client.stdout is not None
    own_network = network("self")
    while network(client.pid) == own_network:
        time.sleep(0.01)
    run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", str(client.pid))
    enter = ("nsenter", "--net", "--target", str(client.pid))
    for prefix, device, address in (((), "veth0", own), (enter, "veth1", other)):
        more = ("nodad",) if version == "6" else ()
        run(*prefix, "ip", "addr", "add", f"{address}/{bits}", "dev", device, *more)
        run(*prefix, "ip", "link", "set", "lo", "up")
        run(*prefix, "ip", "link", "set", device, "up")
    family = socket.AF_INET6 if version == "6" else socket.AF_INET
    serve = {"bulk": lambda: serve_bulk(family, own), "grpc": lambda: serve_grpc(own)}
    serve.get(kind, lambda: serve_http(family, own))()
    client.stdin.write("go\n")
    client.stdin.flush()
    assert client.stdout.readline() == "connected\n"
    found: dict[str, Any] = {}
    if kind == "bulk":
        found["taken"] = bulk(client)
    else:
        speaks = {"grpc": "http2", "http": "http"}[kind]
        work = mover.Mover(mover.Plan({PORT: speaks}, (own,), 4.0, take=True), ())
        ended, left = work.move()
        found |= {"moved": ended, "left": left, "why": work.why}
        if kind == "grpc":
            client.stdin.write("enough\n")
            client.stdin.flush()
        work.linger()
        work.close()
    found |= json.loads(client.stdout.readline())
    found["tables"] = subprocess.run(("nft", "list", "tables"), capture_output=True, text=True, check=True).stdout
    found["rules"] = subprocess.run(("ip", "rule"), capture_output=True, text=True, check=True).stdout.count("fwmark")
    print(json.dumps(found), flush=True)
    os._exit(0)


def bulk(client: subprocess.Popen[str]) -> int:
    """In its midst, whatever is under way."""
    time.sleep(0.3)
    takeover = Takeover()
    crowd = Crowd(takeover)
    taken = 0
    with diag.opened() as sock:
        while not taken and client.poll() is None:
            for pair in takeover.take(sock, diag.connections(sock, {PORT})):
                crowd.add(pair, "http")
                taken += 1
            crowd.work(0.6 if not taken else 0.05)
        while crowd.members:
            crowd.work(0.2)
    crowd.close()
    takeover.close()
    return taken


main()

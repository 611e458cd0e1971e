"""What a process in a namespace sees: users, files, the loopback, addresses, mounts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devloop.net.host import HostPorts
from devloop.net.inside import remove_made
from devloop.net.mounts import Bind
from devloop.net.publish import loopback_listeners
from tests.integration.net.conftest import DEADLINE, NOBODY, SYSTEM_PYTHON, Cluster, Pod
from tests.integration.net.scripts import CONNECT, ECHO

# ruff: noqa: ASYNC240 - the files are tiny, and nothing else runs on the loop
pytestmark = pytest.mark.slow


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"host:" + await reader.read())
    await writer.drain()
    writer.close()


async def test_user_and_files_are_the_same(pod: Pod, shared: Path) -> None:
    out = await pod.python(
        "import os; open('/tmp/devloop-net-test', 'w').write('x'); "
        "print(os.getuid(), os.getgid(), os.stat('/tmp/devloop-net-test').st_uid)"
    )
    path = Path("/tmp/devloop-net-test")
    try:
        uid = NOBODY if pod.inside.user_namespace and os.getuid() == 0 else os.getuid()
        assert out == f"{uid} {uid} {uid}"
        assert path.read_text() == "x"
        assert path.stat().st_uid == uid
    finally:
        path.unlink()


async def test_the_host_can_signal_and_see_what_runs_inside(pod: Pod) -> None:
    running = await pod.start("sleep", "100")
    assert psutil.Process(running.pid).name() == "sleep"
    running.signal()
    assert await running.code == -signal.SIGTERM


async def test_a_service_listens_on_a_low_port(pod: Pod) -> None:
    await pod.serve(ECHO % ("", 80), 80)
    sock = await pod.inside.connect(80)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"hello")
    assert await loop.sock_recv(sock, 10) == b"hello"
    sock.close()
    with pytest.raises(ConnectionRefusedError):
        await pod.inside.connect(81)


async def test_localhost_is_its_own_then_the_hosts_then_refused(pod: Pod) -> None:
    sockets = loopback_listeners(0)
    port = sockets[0].getsockname()[1]
    servers = [await asyncio.start_server(echo, sock=sock) for sock in sockets]
    hosts = HostPorts()
    try:
        await hosts.add(pod.inside, lambda: ())
        assert await pod.python(CONNECT, "127.0.0.1", str(port)) == "host:hello"
        assert await pod.python(CONNECT, "::1", str(port)) == "host:hello"
        assert await pod.python(CONNECT, "localhost", str(port)) == "host:hello"
        assert await pod.python(CONNECT, "127.0.0.1", "4") == "ConnectionRefusedError"
        await pod.serve(ECHO % ("127.0.0.1", port), port)
        assert await pod.python(CONNECT, "127.0.0.1", str(port)) == "hello"
        servers[1].close()
        # Only the other family listens on the host: localhost still works, whichever is tried first.
        assert await pod.python(CONNECT, "::1", str(port)) == "host:hello"
        servers[0].close()
        await hosts.look()
        assert await pod.python(CONNECT, "::1", str(port)) == "ConnectionRefusedError"
    finally:
        await hosts.close()
        for server in servers:
            server.close()


async def test_own_ports_that_are_published_do_not_come_back_in(pod: Pod) -> None:
    hosts = HostPorts()
    publication = await pod.publisher.publish(18080)
    try:
        await hosts.add(pod.inside, lambda: [p.host_port for p in pod.publisher.published])
        assert await pod.python(CONNECT, "127.0.0.1", str(publication.host_port)) == "ConnectionRefusedError"
    finally:
        await hosts.close()


async def test_its_own_address_and_the_source_of_its_connections(pod: Pod) -> None:
    await pod.serve(ECHO % ("", 8080), 8080)
    assert await pod.python(CONNECT, "198.18.0.1", "8080") == "hello"
    assert await pod.python(CONNECT, "198.18.0.1", "8081") == "ConnectionRefusedError"
    own = "import socket; s = socket.socket(%s, socket.SOCK_DGRAM); s.connect((%r, 9)); print(s.getsockname()[0])"
    assert await pod.python(own % ("socket.AF_INET", "10.96.0.1")) == "198.18.0.1"
    assert await pod.python(own % ("socket.AF_INET6", "2001:db8::1")) == "fd5e:76c0:6f70::1"


async def test_udp_on_the_loopback_is_left_alone(pod: Pod) -> None:
    script = """
import socket
a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(("127.0.0.1", 0)); a.settimeout(5)
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); b.sendto(b"x", a.getsockname())
print(a.recv(1).decode())
b.connect(("127.0.0.1", 4)); b.send(b"x"); b.settimeout(5)
try: b.recv(1)
except OSError as error: print(type(error).__name__)
"""
    assert await pod.python(script) == "x\nConnectionRefusedError"


async def test_volumes_stand_at_their_paths(pod: Pod, shared: Path) -> None:
    volume = shared / "volume"
    volume.mkdir()
    (volume / "key").write_text("value")
    single = shared / "single"
    single.write_text("one file")
    secrets = "/var/run/secrets/kubernetes.io/serviceaccount"
    resolv = shared / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\nsearch shop.svc.cluster.local\noptions ndots:5\n")
    before = {str(p) for p in Path("/").iterdir()}
    mounted = await pod.inside.mount(
        [
            Bind(str(volume), "/data/deep/er", read_only=True),
            Bind(str(volume), secrets),
            Bind(str(single), "/etc/app/config.yaml", read_only=True),
            Bind(str(resolv), "/etc/resolv.conf"),
            Bind(str(volume), "/tmp/devloop-net-mount/x"),
            Bind("/nowhere", "/data/nowhere"),
        ]
    )
    try:
        assert list(mounted.failed) == ["/data/nowhere"], mounted.failed
        for path in ("/data/deep/er/key", f"{secrets}/key", "/tmp/devloop-net-mount/x/key"):
            done = await pod.run("cat", path)
            assert done.out == "value", (path, done.err)
        assert (await pod.run("cat", "/etc/app/config.yaml")).out == "one file"
        assert "shop.svc" in (await pod.run("cat", "/etc/resolv.conf")).out
        done = await pod.run("touch", "/data/deep/er/other")
        assert done.code != 0
        assert "Read-only" in done.err
        inside = set((await pod.python("import os; print('\\n'.join(os.listdir('/')))")).splitlines())
        assert {f"/{name}" for name in inside} == before | {"/data"}
        # Files are followed, as the kubelet changes them, and the rest of the file system is there.
        (volume / "key").write_text("changed")
        assert (await pod.run("cat", "/data/deep/er/key")).out == "changed"
        assert (await pod.run("ls", "/usr/bin/env", "/proc/self/status", "/dev/null", "/etc/passwd")).code == 0
        await pod.inside.mount([], ["/data/deep/er"])
        assert (await pod.run("ls", "/data/deep/er")).out == ""
    finally:
        await pod.close()
        pod.close = _nothing  # type: ignore[method-assign]
        remove_made(mounted.made)
    assert not Path("/tmp/devloop-net-mount").exists()
    assert {str(p) for p in Path("/").iterdir()} == before


async def _nothing() -> None:
    pass


async def test_a_file_that_the_host_replaces_is_mounted_again(cluster: Cluster, shared: Path) -> None:
    """As NetworkManager does with /etc/resolv.conf: rename(2) detaches what is mounted on it."""
    pod = await cluster.pod(ordinary=False)
    host, ours, new = shared / "resolv.conf", shared / "ours", shared / "new"
    host.write_text("host")
    ours.write_text("ours")
    await pod.inside.mount([Bind(str(ours), str(host))])
    assert (await pod.run("cat", str(host))).out == "ours"
    new.write_text("host again")
    new.rename(host)
    assert (await pod.run("cat", str(host))).out == "ours"
    assert host.read_text() == "host again"


async def test_a_bind_outlives_the_folder_of_the_one_that_it_replaces(cluster: Cluster, shared: Path) -> None:
    """The kernel detaches, in all namespaces, what is mounted on a folder that is removed."""
    pod = await cluster.pod(ordinary=False)
    for name in ("first", "second"):
        folder = shared / name
        folder.mkdir()
        (folder / "key").write_text(name)
        assert not (await pod.inside.mount([Bind(str(folder), "/data/app")])).failed
        assert (await pod.run("cat", "/data/app/key")).out == name
    shutil.rmtree(shared / "first")
    assert (await pod.run("cat", "/data/app/key")).out == "second"


async def test_nothing_is_left_when_the_holder_is_killed(cluster: Cluster) -> None:
    pod = await cluster.pod()
    running = await pod.start(SYSTEM_PYTHON, "-c", "import time; time.sleep(100)")
    assert _inode(f"/proc/{running.pid}/ns/net") != _inode("/proc/self/ns/net")
    with _held(running.pid) as namespace:
        pod.holder.kill()
        await asyncio.wait_for(pod.lost.wait(), DEADLINE)
        await asyncio.to_thread(pod.holder.wait)
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(running.pid).wait(DEADLINE)
        assert namespace not in _network_namespaces()


@contextlib.contextmanager
def _held(pid: int) -> Iterator[int]:
    """The number of a process's network namespace, which no other one gets meanwhile."""
    with Path(f"/proc/{pid}/ns/net").open("rb") as file:
        yield os.fstat(file.fileno()).st_ino


def _inode(path: str) -> int:
    return Path(path).stat().st_ino


def _network_namespaces() -> set[int]:
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                found.add(_inode(f"{process}/ns/net"))
            except OSError:
                continue
    return found


OWNER = """
import asyncio, socket, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.integration.net.conftest import SYSTEM_PYTHON, Pod, Table
async def main():
    pod = Pod("api", Table(), ordinary=True)
    await pod.open()
    running = await pod.start(SYSTEM_PYTHON, "-c", "import time; time.sleep(100)")
    print(pod.holder.pid, running.pid, flush=True)
    await asyncio.sleep(100)
asyncio.run(main())
"""


async def test_nothing_is_left_when_the_engine_is_killed(namespaces: None) -> None:
    root = str(Path(__file__).parents[3])
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, root, stdout=asyncio.subprocess.PIPE, cwd=root
    )
    assert engine.stdout is not None
    holder, service = map(int, (await asyncio.wait_for(engine.stdout.readline(), DEADLINE)).split())
    processes = [psutil.Process(holder), psutil.Process(service)]
    with _held(service) as namespace:
        engine.kill()
        await engine.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=DEADLINE)
        assert not alive
        assert namespace not in _network_namespaces()

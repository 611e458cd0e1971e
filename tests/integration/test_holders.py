"""Nothing outlives the engine: whole trees are ended, whoever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from devloop.local.process import RUN_VARIABLE, Ended, Holders
from devloop.local.sweep import note, sweep
from tests.integration.conftest import DEADLINE, wait_gone

pytestmark = pytest.mark.slow


class Listener:
    """Remembers what it is told of one job."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.pid: asyncio.Future[int] = loop.create_future()
        self.failure: asyncio.Future[tuple[str, str]] = loop.create_future()
        self.ended: asyncio.Future[Ended] = loop.create_future()

    def job_started(self, pid: int, at: int) -> None:
        assert 0 <= time.monotonic_ns() - at < DEADLINE * 1e9
        self.pid.set_result(pid)

    def job_failed(self, error: str, hint: str) -> None:
        self.failure.set_result((error, hint))

    def job_ended(self, ended: Ended) -> None:
        self.ended.set_result(ended)


class Bench:
    """Holders, and one line to start a job."""

    def __init__(self) -> None:
        self.holders = Holders()
        self.run_id = self.holders.run_id

    def start(self, script: str, *, job: str = "main", service: str = "api") -> Listener:
        listener = Listener()
        self.holders.get(service).start(
            job,
            ["sh", "-c", script],
            cwd=Path("/"),
            env={"PATH": os.environ["PATH"], RUN_VARIABLE: self.run_id},
            output=(1, 2),
            listener=listener,
            main=job == "main",
        )
        return listener

    def stop(self, timeout: float, *, job: str = "main") -> None:
        self.holders.get("api").stop(job, signal.SIGTERM, timeout)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.holders.open()
    yield bench
    await bench.holders.close()
    wait_gone(bench.run_id)


async def test_exit_codes_and_signals(bench: Bench) -> None:
    assert (await bench.start("exit 3").ended).code == 3
    assert (await bench.start("kill -9 $$").ended).code == -9


async def test_what_cannot_be_started_is_explained(bench: Bench) -> None:
    listener = Listener()
    arguments = {"cwd": Path("/nowhere"), "env": {}, "output": (1, 2), "listener": listener}
    bench.holders.get("api").start("main", ["true"], **arguments)  # type: ignore[arg-type]
    error, _ = await listener.failure
    assert "/nowhere" in error


async def test_a_service_leads_a_session_and_a_group_of_its_own(bench: Bench) -> None:
    listener = bench.start("exec sleep 600")
    pid = await listener.pid
    assert os.getsid(pid) == os.getpgid(pid) == pid
    bench.stop(5)
    assert (await listener.ended).code == -signal.SIGTERM


async def test_a_stop_ends_double_forked_daemons_too(bench: Bench) -> None:
    # The daemon leads a session of its own and has lost its parent: neither group nor parent leads to it.
    script = "(setsid sh -c 'sleep 600 & exec sleep 600' &); exec sleep 600"
    listener = bench.start(script)
    await listener.pid
    while len(psutil.Process(bench.holders.root_pid).children(recursive=True)) < 4:  # noqa: ASYNC110 - the process table has no events
        await asyncio.sleep(0.005)
    bench.stop(5)
    ended = await listener.ended
    assert ended.left_behind == 2
    assert ended.survivors == ()
    holder, *rest = psutil.Process(bench.holders.root_pid).children(recursive=True)
    assert (holder.name(), rest) == ("devloop api", [])


async def test_what_ignores_the_signal_is_killed_in_time(bench: Bench) -> None:
    listener = bench.start("trap '' TERM; setsid sh -c \"trap '' TERM; sleep 600; sleep 600\" & wait; sleep 600")
    await listener.pid
    await asyncio.sleep(0.1)  # until the traps are set: nothing tells
    began = time.monotonic()
    bench.stop(0.3)
    assert (await listener.ended).code == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - began < 3


async def test_what_the_main_process_leaves_behind_is_ended_and_counted(bench: Bench) -> None:
    ended = await bench.start("setsid sleep 600 & exit 0").ended
    assert (ended.code, ended.left_behind) == (0, 1)


async def test_orphans_of_one_job_do_not_hold_up_another(bench: Bench) -> None:
    main = bench.start("setsid sleep 600 & sleep 600")
    await main.pid
    probe = await bench.start("exit 0", job="probe").ended
    assert (probe.code, probe.left_behind) == (0, 0)
    bench.stop(5)
    await main.ended


async def test_a_killed_holder_takes_its_service_along(bench: Bench) -> None:
    listener = bench.start("(setsid sleep 600 &); exec sleep 600")
    pid = await listener.pid
    holder = psutil.Process(pid).parent()
    assert holder is not None and holder.name() == "devloop api"
    holder.kill()
    assert (await listener.ended).code == -9
    root = psutil.Process(bench.holders.root_pid)
    await asyncio.to_thread(psutil.wait_procs, root.children(recursive=True), timeout=DEADLINE)
    assert root.children() == []
    assert (await bench.start("exit 4").ended).code == 4, "a new holder takes its place"


async def test_close_ends_everything(bench: Bench) -> None:
    await bench.start("exec sleep 600").pid
    await bench.start("exec sleep 600", service="web").pid
    await bench.holders.close()
    wait_gone(bench.run_id)


def devloop(root: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "devloop.cli", "-f", str(root / "devloop.toml"), *args]


CONFIG = """
[services.api]
command = "sh -c '(setsid sh -c \\"exec sleep 6001\\" &); trap \\"\\" HUP; exec sleep 6002'"
[services.loud]
command = "sh -c 'while :; do echo noise; done'"
[services.stubborn]
command = "sh -c 'trap \\"\\" TERM INT; while :; do sleep 6003; done'"
stop = { signal = "TERM", timeout = "100ms" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A project; what may be left of it when a test fails is ended."""
    (tmp_path / "devloop.toml").write_text(CONFIG)
    yield tmp_path
    subprocess.run(devloop(tmp_path, "down"), check=False, capture_output=True)


def test_kill_9_of_the_engine_under_load_leaves_no_process_and_up_just_works(folder: Path) -> None:
    for _ in range(2):
        subprocess.run(devloop(folder, "up", "--detach"), check=True, capture_output=True)
        pid = int((folder / ".devloop/engine.lock").read_text())
        tree = psutil.Process(pid).children(recursive=True)
        assert len(tree) >= 1 + 3 + 3, "the root holder, three holders, three services"
        os.kill(pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(tree, timeout=DEADLINE)
        assert not alive
        wait_gone(str(folder))
    subprocess.run(devloop(folder, "up", "--detach"), check=True, capture_output=True)
    assert subprocess.run(devloop(folder, "down"), check=False).returncode == 0
    wait_gone(str(folder))


def test_kill_9_of_everything_of_devloop_is_swept_by_the_next_engine(folder: Path) -> None:
    subprocess.run(devloop(folder, "up", "--detach"), check=True, capture_output=True)
    pid = int((folder / ".devloop/engine.lock").read_text())
    engine = psutil.Process(pid)
    tree = engine.children(recursive=True)
    held = [p for p in tree if not p.name().startswith("devloop")]
    for process in [engine, *tree]:
        if process not in held:
            process.suspend()  # at once, so that none can react to the end of another
    for process in [engine, *tree]:
        if process not in held:
            process.kill()
    left = [p for p in held if p.is_running()]
    assert left, "the daemon has lost everyone who knew of it"
    subprocess.run(devloop(folder, "up", "--detach"), check=True, capture_output=True)
    _, alive = psutil.wait_procs(left, timeout=DEADLINE)
    assert not alive
    assert subprocess.run(devloop(folder, "down"), check=False).returncode == 0


def test_a_sweep_without_a_record_or_with_a_damaged_one_ends_nothing(tmp_path: Path) -> None:
    record = tmp_path / "processes.json"
    assert sweep(record) == 0
    record.write_text("{")
    assert sweep(record) == 0
    note(record, uuid.uuid4().hex)
    assert sweep(record) == 0

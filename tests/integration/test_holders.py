"""Nothing outlives the engine: whole trees are ended, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
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
from tests.waiting import until

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

    def start(self, script: str, *, job: str = "main", service: str = "api", keep: bool = False) -> Listener:
        return self.run(["sh", "-c", script], job=job, service=service, keep=keep)

    def run(
        self,
        argv: list[str],
        *,
        job: str = "main",
        service: str = "api",
        keep: bool = False,
        cwd: Path = Path("/"),
        path: str = os.environ["PATH"],
        stdin: int | None = None,
    ) -> Listener:
        listener = Listener()
        self.holders.get(service).start(
            job,
            argv,
            cwd=cwd,
            env={"PATH": path, RUN_VARIABLE: self.run_id},
            output=(1, 2),
            listener=listener,
            main=job == "main",
            keep=keep,
            stdin=stdin,
        )
        return listener

    def stop(self, timeout: float, *, job: str = "main", group: bool = False) -> None:
        self.holders.get("api").stop(job, signal.SIGTERM, timeout, group=group)

    async def printed(self, file: Path, lines: int) -> list[str]:
        """What processes have written there, once it is so many lines."""

        def read() -> list[str]:
            return file.read_text().splitlines() if file.exists() else []

        async with asyncio.timeout(DEADLINE):
            while len(read()) < lines:  # noqa: ASYNC110 - a file has no events
                await asyncio.sleep(0.005)
        return read()


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

    def sleeping() -> int:
        root = psutil.Process(bench.holders.root_pid)
        with contextlib.suppress(psutil.NoSuchProcess):  # a shell that has just become something else, or ended
            return [each.name() for each in root.children(recursive=True)].count("sleep")
        return 0

    await until(lambda: sleeping() == 3)
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


MASTER = """
import os, signal, sys, time
out = open(sys.argv[1], "a", buffering=1)
child = os.fork()
name = "worker" if child == 0 else "master"
def heard(number, _):
    out.write(f"{name} {signal.Signals(number).name}\\n")
    if child == 0 and sys.argv[2:] == ["patient"] and number == signal.SIGUSR1:
        return
    if child:
        os.kill(child, signal.SIGUSR1)
        out.write(f"worker ended with {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n")
    sys.exit(0)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, heard)
out.write("up\\n")
while True:
    signal.pause()
"""


async def test_a_master_alone_hears_of_the_stop_and_ends_its_worker_itself(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    listener = bench.run([sys.executable, "-c", MASTER, str(out)])
    await bench.printed(out, 2)
    bench.stop(DEADLINE)
    ended = await listener.ended
    assert (ended.code, ended.left_behind) == (0, 0)
    assert out.read_text().splitlines()[2:] == ["master SIGTERM", "worker SIGUSR1", "worker ended with 0"]


async def test_a_stop_of_the_group_reaches_all_at_once(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # Of two signals that are there at once, Python handles the one with the lower number first.
    listener = bench.run([sys.executable, "-c", MASTER, str(out), "patient"])
    await bench.printed(out, 2)
    bench.stop(DEADLINE, group=True)
    await listener.ended
    assert "worker SIGTERM" in out.read_text()


async def test_what_a_shell_ran_is_asked_once_when_the_shell_has_ended(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    listener = bench.start(f"{sys.executable} -c '{MASTER}' {out}; true")
    await bench.printed(out, 2)
    bench.stop(DEADLINE)
    ended = await listener.ended
    assert (ended.code, ended.left_behind) == (-signal.SIGTERM, 1)
    assert out.read_text().splitlines()[2:] == ["master SIGTERM", "worker SIGUSR1", "worker ended with 0"]


@pytest.mark.parametrize("shell", ["dash", "bash"])
async def test_what_a_shell_with_a_trap_waits_for_is_asked_with_it(bench: Bench, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    out = tmp_path / "out"
    script = f"trap 'echo trap >>{out}; exit 3' TERM; {sys.executable} -c '{MASTER}' {out}; true"
    read, write = os.pipe()
    try:
        listener = bench.run([shell, "-c", script], stdin=read)
        await bench.printed(out, 2)
        bench.stop(DEADLINE)
        assert (await listener.ended).code == 3
    finally:
        os.close(read)
        os.close(write)
    assert out.read_text().splitlines()[2:] == ["master SIGTERM", "worker SIGUSR1", "worker ended with 0", "trap"]


@pytest.mark.parametrize("shell", ["dash", "bash"])
async def test_what_a_trap_asks_itself_is_asked_once(bench: Bench, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    out = tmp_path / "out"
    script = f"{sys.executable} -c '{MASTER}' {out} & trap 'kill $!; wait $!; exit 3' TERM; wait $!"
    read, write = os.pipe()
    try:
        listener = bench.run([shell, "-c", script], stdin=read)
        await bench.printed(out, 2)
        bench.stop(DEADLINE)
        assert (await listener.ended).code == 3
    finally:
        os.close(read)
        os.close(write)
    assert out.read_text().splitlines()[2:] == ["master SIGTERM", "worker SIGUSR1", "worker ended with 0"]


async def test_asked_twice_it_hears_once(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        f"trap 'echo TERM >>{out}; sleep 0.3 & wait $!; exit 0' TERM; echo up >>{out}; while :; do sleep 0.02; done"
    )
    listener = bench.start(script)
    await bench.printed(out, 1)
    bench.stop(DEADLINE)
    await bench.printed(out, 2)
    bench.stop(DEADLINE)
    await listener.ended
    assert out.read_text().splitlines() == ["up", "TERM"]


async def test_a_reload_signal_goes_past_a_shell_to_who_handles_it(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    listener = bench.start(f"{sys.executable} -c '{MASTER}' {out}; exit 7")
    await bench.printed(out, 2)
    bench.holders.get("api").signal("main", signal.SIGHUP)
    assert (await listener.ended).code == 7, "the shell has not heard of it"
    assert "master SIGHUP" in out.read_text()
    assert "worker SIGHUP" not in out.read_text()


async def test_a_reload_signal_that_nobody_handles_is_the_main_process_own(bench: Bench) -> None:
    listener = bench.start("sleep 600; true")
    await listener.pid
    bench.holders.get("api").signal("main", signal.SIGHUP)
    assert (await listener.ended).code == -signal.SIGHUP


class TestPrograms:
    """What can't be started, and why."""

    async def test_a_folder_of_path_that_may_not_be_read(self, bench: Bench, tmp_path: Path) -> None:
        if os.getuid() == 0:
            pytest.skip("root may read every folder: run the tests as an ordinary user")
        (tmp_path / "shut").mkdir(mode=0)
        listener = bench.run(["no-such-tool"], path=f"{tmp_path}/shut:/usr/bin")
        error, _ = await listener.failure
        assert error == "no such program: no-such-tool"

    async def test_a_file_of_path_in_place_of_a_folder(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        error, _ = await bench.run(["no-such-tool"], path=f"{tmp_path}/file").failure
        assert error == "no such program: no-such-tool"

    async def test_a_file_that_may_not_be_run(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "tool").write_text("#!/bin/sh\n")
        error, _ = await bench.run(["./tool"], cwd=tmp_path).failure
        assert error == "can't run ./tool: Permission denied"

    async def test_an_interpreter_that_is_missing(self, bench: Bench, tmp_path: Path) -> None:
        tool = tmp_path / "tool"
        tool.write_text("#!/usr/bin/no-such-ruby -w\n")
        tool.chmod(0o755)
        error, _ = await bench.run(["./tool"], cwd=tmp_path).failure
        assert "/usr/bin/no-such-ruby" in error

    async def test_line_ends_of_windows(self, bench: Bench, tmp_path: Path) -> None:
        tool = tmp_path / "tool"
        tool.write_bytes(b"#!/bin/sh\r\necho hi\r\n")
        tool.chmod(0o755)
        error, hint = await bench.run(["./tool"], cwd=tmp_path).failure
        assert "Windows" in error and "line ends" in hint

    async def test_a_script_without_a_first_line_is_run_by_sh(self, bench: Bench, tmp_path: Path) -> None:
        tool = tmp_path / "tool"
        tool.write_text('exit "$1"\n')
        tool.chmod(0o755)
        assert (await bench.run(["./tool", "5"], cwd=tmp_path).ended).code == 5
        assert (await bench.run(["tool", "6"], path=f"{tmp_path}:/bin").ended).code == 6


class TestBuildServers:
    """What a build leaves running serves the next one."""

    def server(self, out: Path, *, sets_sid: bool = True) -> str:
        return f"{'setsid ' if sets_sid else ''}sh -c 'echo $$ >>{out}; exec sleep 600' & sleep 0.05"

    @pytest.mark.parametrize("sets_sid", [True, False])
    async def test_it_outlives_its_build_other_builds_and_the_service(
        self, bench: Bench, tmp_path: Path, sets_sid: bool
    ) -> None:
        out = tmp_path / "out"
        build = bench.start(self.server(out, sets_sid=sets_sid), job="build-1", keep=True)
        (pid,) = await bench.printed(out, 1)
        ended = await build.ended
        assert (ended.code, ended.left_behind) == (0, 0)
        main = bench.start("exec sleep 600")
        await main.pid
        bench.stop(DEADLINE)
        assert (await main.ended).left_behind == 0
        second = bench.start("sleep 600", job="build-2", keep=True)
        await second.pid
        bench.stop(DEADLINE, job="build-2", group=True)
        await second.ended
        assert psutil.pid_exists(int(pid))
        bench.holders.get("api").dismiss(DEADLINE)
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended already
            psutil.Process(int(pid)).wait(DEADLINE)
        assert not psutil.pid_exists(int(pid))

    async def test_a_cancelled_build_takes_its_own_along(self, bench: Bench, tmp_path: Path) -> None:
        out = tmp_path / "out"
        build = bench.start(self.server(out) + "; sleep 600", job="build-1", keep=True)
        (pid,) = await bench.printed(out, 1)
        bench.stop(DEADLINE, job="build-1", group=True)
        await build.ended
        assert not psutil.pid_exists(int(pid))

    async def test_it_ends_with_the_engine_even_if_it_ignores_that(self, bench: Bench, tmp_path: Path) -> None:
        out = tmp_path / "out"
        script = f"setsid sh -c 'trap \"\" TERM; echo $$ >>{out}; sleep 600; sleep 600' & sleep 0.05"
        build = bench.start(script, job="build-1", keep=True)
        (pid,) = await bench.printed(out, 1)
        await build.ended
        assert psutil.pid_exists(int(pid))
        await bench.holders.close()  # its end of the sockets closes, as a killed engine's does
        assert not psutil.pid_exists(int(pid))


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
        pid = int((folder / ".devloop/engine.lock").read_text().split()[0])
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
    pid = int((folder / ".devloop/engine.lock").read_text().split()[0])
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

"""The engine on real processes: start, reload, failure, configuration, history."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys

import pytest

from devloop.config.model import SECOND
from devloop.core import flap
from devloop.errors import EngineError, UsageError
from devloop.protocol import Outcome, State
from devloop.state import StateFolder
from tests.integration.conftest import Project
from tests.ports import free_port

pytestmark = pytest.mark.slow

PRINTER = """
    [services.api]
    command = "sh -c 'cat data.txt; exec sleep 600'"
    watch = ["data.txt", "src"]
    """


async def test_a_save_restarts_the_service_and_is_a_loop_that_survives_the_engine(project: Project) -> None:
    project.config(PRINTER)
    project.write("data.txt", "one\n")
    async with project.up():
        await project.until_state("api", State.READY)
        await project.until_line("api", "one")
        project.write("data.txt", "two\n")
        await project.until_line("api", "two")
        (loop,) = await project.until_loops(1)
        assert loop.outcome is Outcome.OK
        assert loop.files == ("data.txt",)
        assert set(loop.stamps) == {"edited", "detected", "settled", "stopped", "spawned", "ready"}
        assert list(loop.stamps.values()) == sorted(loop.stamps.values())
        assert project.services["api"].restarts == 1
    async with project.up():
        status = await project.until_state("api", State.READY)
        assert (status.loops, status.p50) == (1, loop.total)


async def test_a_save_without_a_change_restarts_nothing(project: Project) -> None:
    project.config(PRINTER)
    path = project.write("data.txt", "one\n")
    os.utime(path, (1, 1))  # old, so that its content is learned at the start
    async with project.up():
        await project.until_state("api", State.READY)
        await project.until_line("api", "one")
        assert project.engine._files.watcher._learning is not None
        await project.engine._files.watcher._learning
        project.write("data.txt", "one\n")
        path.touch()
        # The next real change is seen after the two that were none: had they counted, there were more loops.
        project.write("data.txt", "two\n")
        await project.until_line("api", "two")
        assert len(await project.until_loops(1)) == 1


async def test_a_checkout_of_1000_files_is_one_loop(project: Project) -> None:
    project.config(
        """
        [services.api]
        command = "sh -c 'echo started; exec sleep 600'"
        watch = ["src"]
        """
    )

    def git(*args: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(project.root), *identity, *args], check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    for branch in ("one", "two"):
        git("checkout", "-q", "--orphan", branch)
        for number in range(1000):
            project.write(f"src/p{number % 20}/f{number}.py", f"{branch} {number}\n")
        git("add", "src")
        git("commit", "-qm", branch)
    async with project.up():
        await project.until_state("api", State.READY)
        git("checkout", "-q", "one")
        await project.until_line("api", "started", 2)
        project.write("src/p0/f0.py", "edited\n")
        await project.until_line("api", "started", 3)
        loops = await project.until_loops(2)
        assert [loop.outcome for loop in loops] == [Outcome.OK, Outcome.OK]
        assert len(loops[0].files) == 100, "the record keeps the first hundred names"


async def test_editors_that_write_by_rename_and_new_folders(project: Project) -> None:
    project.config(PRINTER)
    project.write("data.txt", "one\n")
    project.write("src/a.py", "1\n")
    async with project.up():
        await project.until_state("api", State.READY)
        project.write("data.txt.new", "two\n").rename(project.root / "data.txt")
        await project.until_line("api", "two")
        project.write("src/deep/er/b.py", "1\n")
        loops = await project.until_loops(2)
        await project.until_state("api", State.READY)
        project.write("src/deep/er/b.py", "2\n")
        loops = await project.until_loops(3)
        assert loops[-1].files == ("src/deep/er/b.py",)
        await project.until_state("api", State.READY)
        shutil.rmtree(project.root / "src/deep")
        loops = await project.until_loops(4)
        assert loops[-1].files == ("src/deep/er/b.py",)


async def test_what_is_ignored_restarts_nothing(project: Project) -> None:
    project.config(
        """
        [services.api]
        command = "sh -c 'echo started; exec sleep 600'"
        ignore = ["*.tmp", "!keep.tmp"]
        """
    )
    project.write(".gitignore", "generated/\n")
    project.write("generated/x.py", "")
    project.write("node_modules/m/index.js", "")
    async with project.up():
        await project.until_state("api", State.READY)
        for ignored in (
            "a.tmp",
            "generated/x.py",
            "node_modules/m/index.js",
            ".a.py.swp",
            "a.pyc",
            ".git/HEAD",
        ):
            project.write(ignored, "changed\n")
        project.write("keep.tmp", "counts\n")
        await project.until_line("api", "started", 2)
        (loop,) = await project.until_loops(1)
        assert loop.files == ("keep.tmp",)


async def test_a_failed_build_keeps_the_old_process_and_a_mended_one_replaces_it(project: Project) -> None:
    project.config(
        """
        [services.api]
        command = "sh -c 'cat built.txt; exec sleep 600'"
        build = "sh -c 'grep -v broken source.txt > built.txt'"
        watch = ["source.txt"]
        """
    )
    project.write("source.txt", "one\n")
    async with project.up():
        await project.until_line("api", "one")
        status = await project.until_state("api", State.READY)
        project.write("source.txt", "broken\n")
        (failed,) = await project.until_loops(1)
        assert (failed.outcome, failed.detail) == (Outcome.FAILED, "build exited with 1")
        await project.until(lambda: project.services["api"].stale)
        assert project.services["api"].pid == status.pid
        project.write("source.txt", "two\n")
        await project.until_line("api", "two")
        loops = await project.until_loops(2)
        assert "built" in loops[1].stamps
        assert loops[1].stamps["built"] < loops[1].stamps["stopped"]


async def test_a_superseded_build_is_cancelled(project: Project) -> None:
    project.config(
        """
        [services.api]
        command = "sh -c 'cat source.txt; exec sleep 600'"
        build = "sh -c 'grep -q slow source.txt && exec sleep 500; true'"
        watch = ["source.txt"]
        """
    )
    project.write("source.txt", "one\n")
    async with project.up():
        await project.until_line("api", "one")
        project.write("source.txt", "slow\n")
        await project.until_line("api", "$ sh -c", 2)
        project.write("source.txt", "two\n")
        await project.until_line("api", "two")
        loops = await project.until_loops(2)
        assert [loop.outcome for loop in loops] == [Outcome.SUPERSEDED, Outcome.OK]


async def test_reload_by_signal_keeps_the_process(project: Project) -> None:
    project.config(
        """
        [services.api]
        command = "sh -c 'trap \\"echo reloaded\\" HUP; echo up; while :; do sleep 0.05; done'"
        reload = "signal:HUP"
        watch = ["data.txt"]
        """
    )
    project.write("data.txt", "one\n")
    async with project.up():
        await project.until_line("api", "up")
        before = await project.until_state("api", State.READY)
        project.write("data.txt", "two\n")
        await project.until_line("api", "reloaded")
        (loop,) = await project.until_loops(1)
        assert loop.outcome is Outcome.OK
        assert project.services["api"].pid == before.pid


async def test_a_service_that_writes_what_it_watches_is_caught(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How soon is suspicious is a matter of the core's tests: on a busy machine a process writes at any time.
    for name in ("AT_ONCE", "NEAR", "SLACK"):
        monkeypatch.setattr(flap, name, 60 * SECOND)
    project.config(
        """
        [services.api]
        command = "sh -c 'date +%N >> src/out.txt; exec sleep 600'"
        watch = ["src"]
        """
    )
    project.write("src/a.py", "1\n")
    project.write("src/out.txt", "0\n")
    async with project.up():
        await project.until(lambda: any("out.txt" in notice.text for notice in project.notices))
        await project.until_loops(flap.AT_ONCE_TIMES)
        assert (await project.until_state("api", State.READY)).restarts == flap.AT_ONCE_TIMES
        for number in (1, 2):  # with the first of these restarts it writes once more
            project.write("src/a.py", f"{number}0\n")
            loops = await project.until_loops(flap.AT_ONCE_TIMES + number)
            assert loops[-1].files == ("src/a.py",)


async def test_a_taken_port_names_who_holds_it(project: Project) -> None:
    # Another process: of a port that the engine's own holds, it would say that.
    holding = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1]); input()"
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-uc", holding), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        port = int(await holder.stdout.readline())
        project.config(f'[services.api]\ncommand = "sleep 600"\nports = [{port}]\nready = false\n')
        async with project.up():
            status = await project.until_state("api", State.FAILED)
            assert f"port {port}" in status.reason
            assert f"pid {holder.pid}" in status.reason
    finally:
        holder.kill()
        await holder.wait()


async def test_a_crash_loop_waits_for_a_save(project: Project) -> None:
    project.config(
        """
        [services.api]
        command = "sh run.sh"
        restart = { policy = "on-failure", delay = "1ms", limit = 3 }
        """
    )
    project.write("run.sh", "exit 7\n")
    async with project.up():
        status = await project.until_state("api", State.CRASH_LOOP)
        assert status.exit_code == 7
        project.write("run.sh", "exec sleep 600\n")
        await project.until_state("api", State.READY)


async def test_a_task_is_tried_again_until_it_succeeds(project: Project) -> None:
    project.config(
        """
        [services.migrate]
        command = "sh migrate.sh"
        task = true
        restart = { policy = "on-failure", delay = "1ms" }
        [services.api]
        command = "sleep 600"
        depends_on = { migrate = "completed" }
        """
    )
    project.write("migrate.sh", "echo attempt >> log; test $(wc -l < log) = 3\n")
    async with project.up():
        await project.until_state("api", State.READY)
        migrate = project.services["migrate"]
        assert (migrate.state, migrate.restarts) == (State.COMPLETED, 2)
        assert (project.root / "log").read_text() == 3 * "attempt\n"


async def test_order_readiness_and_tasks(project: Project) -> None:
    port = free_port()
    project.config(
        f"""
        [services.store]
        command = "python3 -m http.server {port} --bind 127.0.0.1"
        ports = {{ http = {port} }}
        ready = {{ http = "/" }}
        watch = []
        [services.seed]
        command = "sh -c 'echo seeding'"
        task = true
        depends_on = ["store"]
        [services.api]
        command = "sh -c 'echo api; exec sleep 600'"
        ready = {{ log = "^api$" }}
        depends_on = {{ seed = "completed" }}
        """
    )
    async with project.up():
        await project.until_state("api", State.READY)
        assert project.services["seed"].state is State.COMPLETED
        starts = {loop.service: loop.started_at + loop.stamps["spawned"] for loop in project.loops}
        ready = {loop.service: loop.started_at + loop.stamps["ready"] for loop in project.loops}
        assert ready["store"] <= starts["seed"]
        assert ready["seed"] <= starts["api"]


async def test_liveness_restarts_what_hangs(project: Project) -> None:
    project.config(
        """
        [services.api]
        command = "sh -c 'rm -f sick; echo well; exec sleep 600'"
        watch = []
        live = { exec = "test ! -e sick", period = "20ms", failures = 2, grace = "1ms" }
        restart = { policy = "on-failure", delay = "1ms" }
        """
    )
    async with project.up():
        await project.until_line("api", "well")
        first = await project.until_state("api", State.READY)
        project.write("sick", "")
        await project.until(lambda: project.services["api"].restarts == 1)
        again = await project.until_state("api", State.READY)
        assert again.pid != first.pid


async def test_devloop_toml_is_followed_and_a_broken_one_changes_nothing(project: Project) -> None:
    def config(api: str, more: str = "") -> None:
        project.config(f'[services.api]\ncommand = "sleep {api}"\nwatch = []\n{more}')

    config("600", '[services.other]\ncommand = "sleep 600"\nwatch = []\n')
    async with project.up():
        first = await project.until_state("api", State.READY)
        other = await project.until_state("other", State.READY)
        config('600"\ncomand = "x')
        await project.until(lambda: project.snapshot.config_error)
        assert "devloop.toml:3:1" in project.snapshot.config_error
        assert "command" in project.snapshot.config_error
        assert project.services["api"].pid == first.pid
        config(
            "601",
            '[services.other]\ncommand = "sleep 600"\nwatch = []\n[services.new]\ncommand = "sleep 600"\n',
        )
        await project.until_state("new", State.READY)
        await project.until(lambda: project.services["api"].pid not in (None, first.pid))
        assert project.services["other"].pid == other.pid
        assert not project.snapshot.config_error
        config("601")
        await project.until(lambda: set(project.services) == {"api"})


async def test_a_broken_include_is_watched_until_it_is_mended(project: Project) -> None:
    api = '[services.api]\ncommand = "sleep 600"\nwatch = []\n'
    project.config(api)
    async with project.up():
        await project.until_state("api", State.READY)
        project.write("more.toml", '[services.new]\ncomand = "sleep 600"\n')
        project.config('include = ["more.toml"]\n' + api)
        await project.until(lambda: "more.toml:2:1" in project.snapshot.config_error)
        project.write("more.toml", '[services.new]\ncommand = "sleep 600"\n')
        await project.until_state("new", State.READY)
        assert not project.snapshot.config_error


async def test_a_changed_env_file_restarts_its_service(project: Project) -> None:
    project.config('[services.api]\ncommand = "sh -c \'echo $$GREETING; exec sleep 600\'"\nenv_file = "my.env"')
    project.write("my.env", "GREETING=hello\n")
    async with project.up():
        await project.until_line("api", "hello")
        project.write("my.env", "GREETING=hallo\n")
        await project.until_line("api", "hallo")


async def test_only_one_engine_runs_for_a_project(project: Project) -> None:
    project.config('[services.api]\ncommand = "sleep 600"\n')
    async with project.up():
        second = Project(project.root)
        with pytest.raises(EngineError, match="an engine runs already"):
            async with second.up():
                pass
        assert StateFolder(project.root).processes.exists(), "what the first has written down is still there"
        await project.until_state("api", State.READY)


async def test_requests_that_make_no_sense_are_refused_with_the_nearest_name(project: Project) -> None:
    project.config('[services.api]\ncommand = "sleep 600"\n')
    async with project.up():
        with pytest.raises(UsageError, match='no service "apy"') as refused:
            await project.client.call("restart", services=["apy"])
        assert refused.value.hint == 'did you mean "api"?'
        with pytest.raises(UsageError, match="no remote"):
            await project.client.call("toggle", service="api", mode="remote")
        with pytest.raises(UsageError, match="no method"):
            await project.client.call("dance")


async def test_toggle_off_and_back(project: Project) -> None:
    project.config('[services.api]\ncommand = "sleep 600"\n')
    async with project.up():
        await project.until_state("api", State.READY)
        assert await project.client.call("toggle", service="api") == {"mode": "off"}
        await project.until_state("api", State.OFF)
        assert await project.client.call("toggle", service="api") == {"mode": "local"}
        await project.until_state("api", State.READY)


async def test_secrets_are_masked_until_asked_for(project: Project) -> None:
    project.config('[services.api]\ncommand = "sleep 600"\nenv = { API_TOKEN = "hunter2", PLAIN = "x" }\n')
    async with project.up():
        answer = await project.client.call("env", service="api", reveal=False)
        shown = {v["name"]: v for v in answer["variables"]}
        assert "hunter2" not in str(answer)
        assert shown["API_TOKEN"]["origin"] == "devloop.toml"
        assert shown["PLAIN"]["value"] == "x"
        assert "hunter2" in str(await project.client.call("env", service="api", reveal=True))


async def test_no_such_program_is_said_in_words(project: Project) -> None:
    project.config('[services.api]\ncommand = "no-such-program --x"\n')
    async with project.up():
        status = await project.until_state("api", State.FAILED)
        assert status.reason == "no such program: no-such-program"
        await project.until_line("api", "no such program")
        assert [line.text for line in project.engine.logs.tail(["api"], 9)] == [status.reason], "said once"


async def test_where_inotify_is_exhausted_files_are_polled(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from devloop.local.watch import inotify
    from devloop.local.watch.source import WatchLimitError

    def refuse(*_: object) -> None:
        raise WatchLimitError("max_user_watches")

    monkeypatch.setattr(inotify.InotifySource, "add", refuse)
    project.config(PRINTER)
    project.write("data.txt", "one\n")
    project.write("src/x", "")
    async with project.up():
        await project.until(lambda: any("max_user_watches" in n.text for n in project.notices))
        await project.until_line("api", "one")
        # Polling compares with its first look, the time of which it does not tell: write until it is seen.
        number = 0
        while not any("again" in line for _, line in project.lines):
            number += 1
            project.write("data.txt", f"again {number}\n")
            await asyncio.sleep(0.2)


async def test_a_repository_that_is_busy_is_waited_for(project: Project) -> None:
    project.config(PRINTER)
    project.write("data.txt", "one\n")
    lock = project.write(".git/index.lock", "")
    async with project.up():
        await project.until_line("api", "one")
        project.write("data.txt", "two\n")
        await project.until(lambda: project.services["api"].state is State.STOPPING or not project.services["api"].pid)
        assert not project.loops or project.loops[-1].cause != "change"
        lock.unlink()
        await project.until_line("api", "two")

"""What a service has for input and output: open pipes, or a terminal of its own."""

from __future__ import annotations

import asyncio

import pytest

from devloop.protocol import State
from tests.integration.conftest import Project

pytestmark = pytest.mark.slow


async def test_python_prints_at_once_into_a_pipe(project: Project) -> None:
    project.write("app.py", "import time; print('listening'); time.sleep(600)")
    project.config("""
        [services.api]
        command = "python3 app.py"
        watch = []
        ready = { log = "listening" }
    """)
    async with project.up():
        await project.until_state("api", State.READY)


async def test_a_services_input_stays_open_and_that_of_tasks_and_builds_is_at_its_end(project: Project) -> None:
    project.config("""
        [services.api]
        command = "sh -c 'read line; echo input ended'"
        build = "sh -c 'read line || echo no input to build with'"
        watch = []

        [services.migrate]
        command = "sh -c 'read answer || echo no answer'"
        task = true
    """)
    async with project.up():
        await project.until_line("api", "no input to build with")
        await project.until_line("migrate", "no answer")
        await project.until_state("migrate", State.COMPLETED)
        await project.until_state("api", State.READY)
        await project.client.call("terminal_type", service="api", data="b25lCg==")
        await project.until_line("api", "input ended")


async def test_a_terminal_is_the_sessions_own_and_has_a_size(project: Project) -> None:
    project.write(
        "app.py",
        """
        import os, shutil, signal, sys, time
        print("terminals", os.isatty(0), os.isatty(1), os.isatty(2), os.ttyname(0) == os.ttyname(2))
        with open("/dev/tty", "w") as own:
            print("own", os.tcgetpgrp(0) == os.getpgrp() == os.getsid(0), os.environ["TERM"], file=own)
        def resized(*_):
            print("resized", tuple(os.get_terminal_size(0)), flush=True)
        signal.signal(signal.SIGWINCH, resized)
        print("size", tuple(os.get_terminal_size(0)), flush=True)
        while True:
            time.sleep(600)
        """,
    )
    project.config("""
        [services.api]
        command = "python3 app.py"
        tty = true
        watch = []
    """)
    async with project.up():
        await project.until_line("api", "terminals True True True True")
        await project.until_line("api", "own True xterm-256color")
        await project.until_line("api", "size (80, 24)")
        await project.client.call("terminal_resize", service="api", columns=101, rows=31)
        await project.until_line("api", "resized (101, 31)")
        assert ("api", "size (80, 24)") in project.lines  # without the terminal's \\r
        await project.client.call("terminal_type", service="api", data="Aw==")  # Ctrl-C
        await project.until_line("api", "KeyboardInterrupt")


@pytest.mark.parametrize("tty", ["true", "false"])
async def test_a_breakpoint_is_seen_and_spared_by_the_probes(project: Project, tty: str) -> None:
    project.write(
        "app.py",
        """
        import socket, time
        breakpoint()
        server = socket.create_server(("127.0.0.1", 0))
        print("ready on", server.getsockname()[1])
        breakpoint()
        print("went on")
        time.sleep(600)
        """,
    )
    project.config(f"""
        [services.api]
        command = "python3 app.py"
        tty = {tty}
        watch = []
        ready = {{ log = "ready on", grace = "5s" }}
        live = {{ exec = "sh -c 'date +%s%N >> asked; false'", period = "50ms", grace = "1500ms", failures = 1 }}
        restart = "never"
    """)

    def prompt() -> str:
        return project.services["api"].prompt if "api" in project.services else ""

    async with project.up():
        await project.until(lambda: prompt() == "(Pdb)", "the first prompt")
        assert project.services["api"].state is State.STARTING
        assert project.services["api"].at_prompt == "at prompt (Pdb)"
        await project.client.call("terminal_type", service="api", data="Ywo=")  # c
        await project.until_state("api", State.READY)
        await project.until(lambda: prompt() == "(Pdb)", "the second prompt")
        asked = project.root / "asked"

        def times_asked() -> int:
            return len(asked.read_text().split()) if asked.exists() else 0

        await asyncio.sleep(1)  # one that had begun before the prompt ends
        before = times_asked()
        await asyncio.sleep(1)  # twenty periods, and its grace is over
        assert times_asked() == before
        await project.client.call("terminal_type", service="api", data="cCAxKzEK")  # p 1+1
        await project.until_line("api", "2")
        assert project.services["api"].state is State.READY
        await project.client.call("terminal_type", service="api", data="Ywo=")
        await project.until_line("api", "went on")
        status = await project.until_state("api", State.FAILED)
        assert "not alive" in status.reason and status.prompt == ""
        assert not [loop for loop in project.loops if loop.outcome == "ok"]

"""`devloop terminal` on a real engine, in a real terminal or behind a pipe."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from devloop.protocol import State
from tests.integration.conftest import DEADLINE, Project

pytestmark = pytest.mark.slow

DEBUGGED = """
    import sys, time
    def half(n):
        breakpoint()
        found = n // 2
        return found
    print("half of 84 is", half(84))
    sys.stdout.flush()
    time.sleep(600)
"""


class Terminal:
    """The command in a terminal of its own, and what that shows."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self.master = master
        self.process = process
        self.shown = ""
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self.master, 65536)
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.master)
        self.shown += data.decode(errors="replace")
        self._news.set()

    async def shows(self, text: str) -> None:
        """Wait for it, and forget all up to there."""
        try:
            async with asyncio.timeout(DEADLINE):
                while text not in self.shown:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"never shown: {text!r}; {self.shown!r}")
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.kill(self.process.pid, signal.SIGWINCH)  # the kernel's part, for who has it as controlling terminal

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.master)[3] & termios.ICANON


@asynccontextmanager
async def attached(
    project: Project, service: str = "api", size: tuple[int, int] = (100, 40)
) -> AsyncIterator[Terminal]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devloop.cli", "-f", str(project.file), "terminal", service),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    terminal = Terminal(master, process)
    try:
        yield terminal
    finally:
        asyncio.get_running_loop().remove_reader(master)
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(master)
        os.close(slave)


async def piped(project: Project, text: str, service: str = "api") -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devloop.cli", "-f", str(project.file), "terminal", service),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(text.encode()), DEADLINE)
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.parametrize("tty", ["true", "false"])
async def test_a_breakpoint_is_stepped_through_and_left(project: Project, tty: str) -> None:
    project.write("app.py", DEBUGGED)
    project.config(f"""
        [services.api]
        command = "python3 app.py"
        tty = {tty}
        watch = []
    """)
    async with project.up():
        await project.until_line("api", "(Pdb)")
        async with attached(project) as terminal:
            await terminal.shows("Ctrl-P Ctrl-Q gives it back")
            await terminal.shows("(Pdb) ")
            assert terminal.raw
            terminal.type("n\r")
            await terminal.shows("(Pdb) ")
            terminal.type("p n * 100x\x7f\r")
            await terminal.shows("8400")
            await terminal.shows("(Pdb) ")
            terminal.type("c\r")
            await terminal.shows("half of 84 is 42")
            terminal.type("\x10\x11")
            await terminal.shows("goes on without the keyboard")
            assert await terminal.process.wait() == 0
            assert not terminal.raw, "the terminal is as it was"
        await project.until_line("api", "half of 84 is 42")
        assert project.services["api"].state is State.READY


async def test_it_has_the_size_of_the_terminal_and_ctrl_c_is_the_services(project: Project) -> None:
    project.write(
        "app.py",
        """
        import os, signal, time
        signal.signal(signal.SIGWINCH, lambda *_: print("size", *os.get_terminal_size(0)))
        while True:
            try:
                print("waits at", *os.get_terminal_size(0))
                time.sleep(600)
            except KeyboardInterrupt:
                print("interrupted")
        """,
    )
    project.config("""
        [services.api]
        command = "python3 app.py"
        tty = true
        watch = []
    """)
    async with project.up():
        await project.until_line("api", "waits at 80 24")
        async with attached(project, size=(91, 17)) as terminal:
            await terminal.shows("size 91 17")
            terminal.resize(70, 20)
            await terminal.shows("size 70 20")
            terminal.type("\x03")
            await terminal.shows("interrupted")
            os.kill(terminal.process.pid, signal.SIGTERM)
            await terminal.process.wait()
            assert not terminal.raw
        assert project.services["api"].restarts == 0


async def test_ctrl_c_interrupts_what_has_pipes_too(project: Project) -> None:
    project.write(
        "app.py",
        """
        import time
        print("waits")
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            print("interrupted")
        time.sleep(600)
        """,
    )
    project.config("""
        [services.api]
        command = "python3 app.py"
        watch = []
    """)
    async with project.up():
        await project.until_line("api", "waits")
        async with attached(project) as terminal:
            await terminal.shows("waits")
            terminal.type("\x03")
            await terminal.shows("interrupted")


async def test_it_stays_over_a_reload_and_goes_with_the_service(project: Project) -> None:
    project.write("app.py", "print('one'); import time; time.sleep(600)")
    project.config("""
        [services.api]
        command = "python3 app.py"
        tty = true
    """)
    async with project.up():
        await project.until_line("api", "one")
        async with attached(project) as terminal:
            await terminal.shows("one")
            project.write("app.py", "print('two:', input('name? ')); import time; time.sleep(600)")
            await terminal.shows("starts again; this terminal stays")
            await terminal.shows("name? ")
            terminal.type("ada\r")
            await terminal.shows("two: ada")
            await project.client.call("stop", services=["api"])
            await terminal.shows("api is stopped")
            assert await terminal.process.wait() == 0
        async with attached(project) as terminal:
            await terminal.shows("api does not run, it is stopped")
            assert await terminal.process.wait() == 1


async def test_what_stands_in_a_pipe_is_typed_and_the_answer_is_printed(project: Project) -> None:
    project.write("app.py", DEBUGGED)
    project.config("""
        [services.api]
        command = "python3 app.py"
        watch = []
    """)
    async with project.up():
        await project.until_line("api", "(Pdb)")
        code, out = await piped(project, "p n + 1\nc\n")
        assert code == 0
        assert "85" in out and "half of 84 is 42" in out
        code, out = await piped(project, "", service="appi")
        assert code == 2 and "there is no service" in out and "api" in out


async def test_two_see_all_and_both_may_type(project: Project) -> None:
    project.write("app.py", "print('waits')\nwhile True: print('got', input())")
    project.config("""
        [services.api]
        command = "python3 app.py"
        tty = true
        watch = []
    """)
    async with project.up(), attached(project) as one, attached(project) as other:
        await one.shows("gives it back")
        await other.shows("gives it back")
        await project.until_line("api", "waits")
        one.type("a\r")
        await one.shows("got a")
        await other.shows("got a")
        other.type("b\r")
        await one.shows("got b")

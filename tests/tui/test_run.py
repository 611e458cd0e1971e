"""`run` on a real terminal: a pseudo-terminal, with the app in a process of its own."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devloop.errors import UsageError
from tests.tui.conftest import DEADLINE, ThreadedEngine
from tui.app import run

pytestmark = pytest.mark.slow

CODE = """
import sys
from pathlib import Path
from tui.app import run
outcome = run(Path(sys.argv[1]))
Path(sys.argv[2]).write_text(outcome)
"""


class Terminal:
    """A terminal with the app on it."""

    def __init__(self, socket: Path, answer: Path) -> None:
        self.answer = answer
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        environment["XDG_CONFIG_HOME"] = str(answer.parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(socket), str(answer)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.output = b""

    def read_until(self, text: bytes) -> None:
        end = time.monotonic() + DEADLINE
        while text not in self.output:
            assert time.monotonic() < end, self.output[-3000:]
            self.read_some()

    def read_some(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            try:
                self.output += os.read(self.master, 65536)
            except OSError:
                time.sleep(0.01)  # the other end is closed

    def wait(self) -> str:
        """How the app was left."""
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < end, "still running"
            if self.master >= 0:
                self.read_some()
            else:
                time.sleep(0.01)
        return self.answer.read_text()

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.master >= 0:
            self.hang_up()


@pytest.fixture
def terminal(threaded: ThreadedEngine, folder: Path) -> Iterator[Terminal]:
    terminal = Terminal(threaded.socket, folder / "outcome")
    terminal.read_until(b"mailer")
    yield terminal
    terminal.close()


def test_detaches(terminal: Terminal) -> None:
    os.write(terminal.master, b"d")
    assert terminal.wait() == "detached"
    assert b"\x1b[?1049l" in terminal.output, "the terminal is left as it was"


def test_stops(terminal: Terminal, threaded: ThreadedEngine) -> None:
    fake = threaded.fake
    fake.on_shutdown = lambda: fake.progress([], done=True)
    os.write(terminal.master, b"q")
    terminal.read_until(b"Leave")
    os.write(terminal.master, b"s")
    assert terminal.wait() == "stopped"


def test_control_c_is_a_key_and_no_signal(terminal: Terminal, threaded: ThreadedEngine) -> None:
    os.write(terminal.master, b"\x03")
    terminal.read_until(b"Leave")
    assert not threaded.fake.calls
    os.write(terminal.master, b"\x03")
    terminal.read_until(b"still alive")
    os.write(terminal.master, b"\x03")
    assert terminal.wait() == "detached"
    assert ("shutdown", {}) in threaded.fake.calls


def test_is_lost(terminal: Terminal, threaded: ThreadedEngine) -> None:
    threaded.close()
    terminal.read_until(b"ended unexpectedly")
    os.write(terminal.master, b"q")
    assert terminal.wait() == "lost"


@pytest.mark.parametrize(("number", "outcome"), [(signal.SIGHUP, "hung-up"), (signal.SIGTERM, "detached")])
def test_signals(terminal: Terminal, number: signal.Signals, outcome: str) -> None:
    terminal.process.send_signal(number)
    assert terminal.wait() == outcome


def test_a_closed_terminal_ends_the_app_even_without_a_signal(terminal: Terminal, threaded: ThreadedEngine) -> None:
    threaded.do(threaded.fake.log, "web", *(f"line {n}" for n in range(5000)))
    terminal.hang_up()
    assert terminal.wait() == "hung-up"
    assert not threaded.fake.calls


def test_no_engine_is_an_error_before_the_screen_changes(folder: Path) -> None:
    terminal = Terminal(folder / "control.sock", folder / "outcome")
    terminal.read_until(b"no engine runs for this project")
    assert b"\x1b[?1049h" not in terminal.output
    terminal.close()


def test_no_terminal_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "input").open("w+") as file:
        monkeypatch.setattr(sys, "__stdin__", file)
        with pytest.raises(UsageError, match="needs a terminal"):
            run(folder / "control.sock")

"""A TAB in a hostile repository, in the real shells: it offers names, and runs nothing.

Each shell runs on a terminal of its own, as a person's does. `devloop names` has a rule for names already; so that the
scripts are tried by themselves too, the second `devloop` on PATH prints whatever stands in a file.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import program

DEADLINE = 30.0
HOSTILE = (
    "$(touch pwned)", "`touch pwned`", "';touch pwned;'", '";touch pwned;"', "a;touch pwned", "${x:=$(touch pwned)}",
    "(touch pwned)", "$[$(touch pwned)]", "a\\`touch pwned\\`", "<(touch pwned)", "x|touch pwned", "a\ttouch pwned",
    "*", "~root", "-rf", "(e:touch pwned:)",
)  # fmt: skip
NAMES = ("api-one", "api-two")

BEGIN = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
    "fish": ["--no-config", "-i"],
    "tcsh": ["-f", "-i"],
}
BEFORE = {
    "bash": "bind 'set bell-style none'; source {script}",
    "zsh": 'autoload -Uz compinit; compinit -u -d {dump}; unsetopt beep; eval "$(<{script})"',
    "fish": "source {script}",
    "tcsh": "set autolist; unset beep; source {script}",
}
pytestmark = pytest.mark.slow


class Shell:
    """An interactive shell on a pseudoterminal."""

    def __init__(self, name: str, folder: Path, path: str) -> None:
        where = program(name)
        self.name = name
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            environ = {"PATH": path, "HOME": str(folder), "TERM": "xterm", "PS1": "> "}
            os.execve(where, [name, *BEGIN[name]], {**environ, "LANG": "C.UTF-8", "fish_features": "no-query-term"})

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, *shown: str) -> str:
        """What it has printed, once all of this is in it."""
        text, deadline = "", time.monotonic() + DEADLINE
        while not all(each in text for each in shown):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{self.name} shows no {shown}: {text!r}"
            text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self._master, 65536).decode(errors="replace"))
        return text

    def run(self, command: str) -> str:
        """Run a line, and wait for its end."""
        self.type(f"{command}; expr 40 + 2\r")
        return self.until("42\r\n")

    def end(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.close(self._master)
        os.waitpid(self._pid, 0)


def _on_path(folder: Path, *command: str) -> str:
    """A PATH with a `devloop` that is this command."""
    folder.mkdir()
    file = folder / "devloop"
    file.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    file.chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


@pytest.fixture(params=["devloop names", "a file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """PATH, and a hostile project in `tmp_path / "project"`."""
    project = tmp_path / "project"
    project.mkdir()
    if request.param == "devloop names":
        services = "".join(f"[services.{_quoted(name)}]\ncommand = 'true'\n" for name in (*HOSTILE, *NAMES[:1]))
        groups = ", ".join(map(_quoted, (*HOSTILE, *NAMES)))
        (project / "devloop.toml").write_text(f"{services}groups = [{groups}]\n")
        return _on_path(tmp_path / "bin", sys.executable, "-m", "devloop.cli")
    (tmp_path / "names").write_text("".join(f"{name}\n" for name in (*NAMES, *HOSTILE)))
    return _on_path(tmp_path / "bin", "/bin/sh", "-c", f"cat {shlex.quote(str(tmp_path / 'names'))}", "names")


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t") + '"'


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path, path: str) -> Iterator[Shell]:
    name: str = request.param
    script = tmp_path / f"completion.{name}"
    command = [sys.executable, "-m", "devloop.cli", "completion", name]
    script.write_bytes(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    found = Shell(name, tmp_path / "project", path)
    try:
        found.run(BEFORE[name].format(script=shlex.quote(str(script)), dump=tmp_path / "dump"))
        yield found
    finally:
        found.end()


@pytest.mark.parametrize("shell", BEGIN, indirect=True)
def test_a_tab_offers_names_and_runs_nothing(shell: Shell, tmp_path: Path) -> None:
    shell.type("devloop restart \t\t\t")
    shown = shell.until(*NAMES)
    shell.type("\x03")  # the half line, and what is offered in it
    shell.run("expr 1")
    assert not [each.name for each in tmp_path.rglob("*pwned*")], shown


@pytest.mark.parametrize("shell", BEGIN, indirect=True)
def test_a_name_that_is_begun_is_completed(shell: Shell, tmp_path: Path) -> None:
    shell.type("devloop restart api-o\t")
    shell.until("restart api-one")
    shell.type("\x03")
    assert not [each.name for each in tmp_path.rglob("*pwned*")]

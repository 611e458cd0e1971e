"""Where the project is: whatever happens to its files and whoever asks, clients find the engine that `up` started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from devloop import presence
from devloop.state import StateFolder
from tests.integration.conftest import DEADLINE, wait_gone

pytestmark = pytest.mark.slow

CONFIG = '[services.api]\ncommand = "sleep 600"\nwatch = []\n'


class Terminal:
    """A shell in a folder, with an environment of its own."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.environ = environ

    def __call__(self, *args: str, code: int = 0) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "devloop.cli", *args],
            cwd=self.folder,
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert result.returncode == code, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result.stdout + result.stderr

    def up(self, *args: str) -> None:
        assert "ready" in self(*args, "up", "--detach", "--wait", str(DEADLINE))

    def is_up(self) -> bool:
        return "ready" in self("status")

    def down(self, *, project: bool = True) -> None:
        """`project`: its file is there."""
        assert "nothing runs" not in self("down")
        assert "nothing runs" in self("down") if project else self("down", code=2)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder with a project `p`; whatever a test has left running in it is ended."""
    project = tmp_path / "p"
    project.mkdir()
    (project / "devloop.toml").write_text(CONFIG)
    yield tmp_path
    for each in psutil.process_iter():
        try:
            if str(tmp_path) in " ".join(each.cmdline()) and "devloop.cli" in " ".join(each.cmdline()):
                each.kill()
        except psutil.Error:
            continue
    wait_gone(str(tmp_path))


def test_a_link_is_the_project_that_it_leads_to(root: Path) -> None:
    (root / "devloop.toml").symlink_to("p/devloop.toml")
    (root / "folder").symlink_to("p")
    (root / "other.toml").symlink_to(root / "devloop.toml")
    by_link, itself = Terminal(root), Terminal(root / "p")
    by_link.up()
    assert itself.is_up() and Terminal(root / "folder").is_up()
    assert "ready" in by_link("-f", "other.toml", "status") and "ready" in by_link("status", "-f", "folder")
    itself.down()
    itself.up("-f", "../other.toml")
    by_link.down()


def test_a_link_that_leads_nowhere_says_so_and_hides_no_engine(root: Path) -> None:
    (root / "devloop.toml").symlink_to("p/devloop.toml")
    terminal = Terminal(root)
    terminal.up()
    (root / "p/devloop.toml").unlink()
    assert terminal.is_up()
    terminal.down(project=False)
    for command in (["status"], ["-f", "devloop.toml", "up", "--detach"]):
        assert "is a link to p/devloop.toml, which is not there" in terminal(*command, code=2)


def test_a_long_path_is_found_whatever_the_environment(root: Path) -> None:
    deep = root / ("p" * 60) / ("q" * 60)
    deep.mkdir(parents=True)
    (deep / "devloop.toml").write_text(CONFIG)
    Terminal(deep, TMPDIR=str(root)).up()
    other = Terminal(deep, TMPDIR=str(root / "p"), HOME=str(root / "p"), XDG_RUNTIME_DIR=str(root / "p"))
    assert other.is_up()
    assert "running" in other("doctor")
    other.down()


def test_a_devloop_toml_that_is_gone_hides_no_engine(root: Path) -> None:
    terminal = Terminal(root / "p")
    terminal.up()
    (root / "p/sub").mkdir()
    (root / "p/devloop.toml").rename(root / "p/renamed.toml")
    assert terminal.is_up() and Terminal(root / "p/sub").is_up()
    assert "ready" in terminal("status", "-f", "renamed.toml")
    (root / "devloop.toml").write_text(CONFIG)  # of another project, further up
    terminal.down()


def test_a_state_folder_that_was_removed_comes_back(root: Path) -> None:
    terminal = Terminal(root / "p")
    terminal.up()
    shutil.rmtree(root / "p/.devloop")
    assert terminal.is_up()
    assert "was removed; it was made anew" in terminal("status", "--json")
    terminal.up()
    (root / "p/.devloop/control.sock").unlink()
    terminal.down()


def test_what_lies_in_the_place_of_the_state_folder_is_named(root: Path) -> None:
    terminal, state = Terminal(root / "p"), root / "p/.devloop"
    state.symlink_to("nowhere")
    assert "this is a link that leads nowhere" in terminal("up", "--detach", code=1)
    state.unlink()
    terminal.up()
    for obstacle, lay in (
        ("a file", lambda: state.write_text("x")),
        ("a link that leads nowhere", lambda: state.symlink_to("nowhere")),
    ):
        shutil.rmtree(state)
        lay()
        for command in ("status", "logs", "down"):
            told = terminal(command, code=1)
            assert f"{state} is {obstacle}" in told and f"remove {obstacle}" in told and "engine.log" not in told
        state.unlink()
        assert terminal.is_up()
    shutil.rmtree(state)
    state.write_text("x")
    assert "were ended" in terminal("down", "--force")


def test_beside_an_engine_up_without_a_screen_names_what_works(root: Path) -> None:
    terminal = Terminal(root / "p")
    terminal.up()
    for command in (["up", "api"], ["up", "--headless", "api"]):
        assert "`devloop up -d api` starts them in it" in terminal(*command, code=1)
    assert "`devloop up -d` shows its services" in terminal("up", code=1)
    assert "`devloop -f" not in terminal("-f", "devloop.toml", "up", code=1)
    assert "ready" in terminal("up", "-d", "api", "--wait", str(DEADLINE))
    terminal.down()


def test_an_engine_whose_project_was_removed_ends(root: Path) -> None:
    Terminal(root / "p").up()
    pid = StateFolder(root / "p").engine_pid()
    assert pid
    shutil.rmtree(root / "p")
    psutil.Process(pid).wait(DEADLINE)


def test_a_project_that_was_moved_is_found_in_its_new_place(root: Path) -> None:
    Terminal(root / "p").up()
    (root / "p").rename(root / "moved")
    terminal = Terminal(root / "moved")
    deadline = time.monotonic() + DEADLINE
    while "was moved" not in terminal("status", "--json"):
        assert time.monotonic() < deadline
    terminal.down()


@pytest.mark.parametrize("which", ["the engine's terminal", "the other one"])
def test_devloop_state_dir_in_one_terminal_only(root: Path, which: str) -> None:
    state = root / "state"
    state.mkdir(mode=0o700)
    with_it, without = Terminal(root / "p", DEVLOOP_STATE_DIR=str(state)), Terminal(root / "p")
    first, second = (with_it, without) if which == "the engine's terminal" else (without, with_it)
    first.up()
    assert second.is_up()
    second.up()
    second.down()


def test_two_projects_do_not_share_a_state_folder(root: Path) -> None:
    state = root / "state"
    state.mkdir(mode=0o700)
    (root / "q").mkdir()
    (root / "q/devloop.toml").write_text(CONFIG)
    first, second = (Terminal(root / each, DEVLOOP_STATE_DIR=str(state)) for each in "pq")
    first.up()
    for command in (["status"], ["up", "--detach"], ["down"]):
        assert "is the state folder of another project" in second(*command, code=1)
    first.down()


def test_a_folder_has_one_engine_and_another_file_is_told_whose(root: Path) -> None:
    (root / "p/other.toml").write_text(CONFIG)
    terminal = Terminal(root / "p")
    terminal.up("-f", "other.toml")
    for command in (["up", "--detach"], ["-f", "devloop.toml", "down"]):
        assert "the engine that runs in this folder is of other.toml" in terminal(*command, code=1)
    terminal.down()


def test_a_suspended_engine_is_told_with_what_to_do_and_down_ends_it(root: Path) -> None:
    terminal = Terminal(root / "p")
    terminal.up()
    pid = StateFolder(root / "p").engine_pid()
    assert pid
    os.kill(pid, signal.SIGSTOP)
    for command in (["status"], ["logs", "-f"], ["toggle", "api"], ["up", "--detach"]):
        text = terminal(*command, code=1)
        assert f"the engine (pid {pid}) is suspended" in text and f"kill -CONT {pid}" in text
    assert "was suspended; it goes on, to end" in terminal("down")
    assert "nothing runs" in terminal("down")


def test_down_force_kills_an_engine_that_does_not_answer(root: Path) -> None:
    terminal = Terminal(root / "p")
    terminal.up()
    pid = StateFolder(root / "p").engine_pid()
    assert pid
    os.kill(pid, signal.SIGSTOP)
    assert f"the engine (pid {pid}) and its services were ended" in terminal("down", "--force")
    assert "nothing runs" in terminal("down")


def test_a_link_in_place_of_the_state_folder_is_not_followed(root: Path) -> None:
    target = root / "target"
    target.mkdir()
    (root / "p/.devloop").symlink_to(target)
    assert "the state folder is a link" in Terminal(root / "p")("up", "--detach", code=1)
    assert not list(target.iterdir())
    (root / "p/.devloop").unlink()
    (root / "p/.devloop").mkdir(mode=0o755)
    victim = root / "victim"
    victim.write_text("dear")
    (root / "p/.devloop/engine.log").symlink_to(victim)
    terminal = Terminal(root / "p")
    terminal.up()
    assert victim.read_text() == "dear"
    assert (root / "p/.devloop").stat().st_mode & 0o777 == 0o700
    terminal.down()


def test_a_current_folder_that_is_gone_is_told(root: Path) -> None:
    script = 'mkdir d && cd d && rmdir ../d && exec "$0" -m devloop.cli status'
    result = subprocess.run(["sh", "-c", script, sys.executable], cwd=root, capture_output=True, text=True)
    assert result.returncode == 2 and "is not there any more" in result.stderr and "Traceback" not in result.stderr


def test_a_name_that_a_stranger_holds_is_no_engine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = presence.Presence(root)
    assert presence.engine_of(root) == os.getpid()
    monkeypatch.setattr(presence, "peer", lambda _: (os.getpid(), os.geteuid() + 1))
    assert presence.engine_of(root) is None
    held.close()


def test_an_engine_is_found_however_often_it_was_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BACKLOG", 4)
    held = presence.Presence(root)
    for _ in range(5):
        assert presence.engine_of(root) == os.getpid()
    assert presence.engine_of(root) is None  # the kernel keeps no more of those who have hung up
    held.hang_up()
    assert presence.engine_of(root) == os.getpid()
    held.close()
    held.hang_up()


def test_too_few_open_files_are_told_and_leave_no_engine(root: Path) -> None:
    for limit in (16, 24):
        command = f"ulimit -n {limit}; exec {sys.executable} -m devloop.cli up -d"
        result = subprocess.run(["sh", "-c", command], cwd=root / "p", capture_output=True, text=True, timeout=60)
        told = result.stdout + result.stderr
        assert result.returncode == 1 and "open files" in told and "Traceback" not in told, told
        assert "nothing runs" in Terminal(root / "p")("down")

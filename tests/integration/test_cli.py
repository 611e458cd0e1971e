"""The command line as a user meets it: real processes, exit codes, messages without tracebacks."""

from __future__ import annotations

import json
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

from devloop.cli import parser
from devloop.protocol import Snapshot
from tests.integration.conftest import DEADLINE, wait_gone
from tests.ports import free_port

pytestmark = pytest.mark.slow

CONFIG = """\
[project]
name = "demo"
[services.api]
command = "sh -c 'echo hello; exec sleep 600'"
env = { GREETING = "good day", API_TOKEN = "hunter2" }
groups = ["back"]
[services.web]
command = "sh -c 'echo web; exec sleep 600'"
depends_on = ["api"]
"""


class Cli:
    """Runs devloop in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "devloop.cli", *args],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert result.returncode == code, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result

    def popen(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "devloop.cli", *args],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def devloop(tmp_path: Path) -> Iterator[Cli]:
    (tmp_path / "devloop.toml").write_text(CONFIG)
    cli = Cli(tmp_path)
    yield cli
    subprocess.run([sys.executable, "-m", "devloop.cli", "down"], cwd=tmp_path, check=False, capture_output=True)
    wait_gone(str(tmp_path))


def test_a_day_in_the_terminal(devloop: Cli) -> None:
    up = devloop("up", "--detach").stdout
    assert up.splitlines()[0].split()[:3] == ["SERVICE", "MODE", "STATE"]
    assert [line.split()[:3] for line in up.splitlines()[1:]] == [
        ["api", "local", "ready"],
        ["web", "local", "ready"],
    ]
    snapshot = Snapshot.from_json(json.loads(devloop("status", "--json").stdout))
    assert (snapshot.project, len(snapshot.services)) == ("demo", 2)
    assert devloop("logs", "api").stdout == "api | hello\n"
    assert json.loads(devloop("logs", "api", "--json").stdout)["text"] == "hello"
    assert "off now" in devloop("toggle", "web", "off").stdout
    devloop("restart", "api")
    (devloop.folder / "x.py").write_text("1")
    deadline = time.monotonic() + DEADLINE
    while not (report := json.loads(devloop("stats", "--json").stdout))["services"][0]["count"]:
        assert time.monotonic() < deadline
    assert report["loops"][-1]["service"] == "api"
    assert "nothing runs" not in devloop("down").stdout
    assert "nothing runs" in devloop("down").stdout
    assert devloop("logs", "api").stdout.startswith("hello\n"), "from the file, with no engine"
    assert "api" in devloop("stats").stdout
    for form in ("chrome", "otlp", "csv"):
        assert "api" in devloop("export", "--format", form).stdout
    devloop("export", "-o", "out.json")
    assert (devloop.folder / "out.json").exists()


def test_headless_prints_the_logs_and_ctrl_c_ends_with_130(devloop: Cli) -> None:
    process = devloop.popen("up", "--headless", "api")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "api | hello\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 130
    assert "all stopped" in process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_headless_ends_when_nobody_reads_any_more(devloop: Cli) -> None:
    (devloop.folder / "devloop.toml").write_text(
        "[services.api]\ncommand = \"sh -c 'while echo x; do sleep 0.01; done'\"\n"
    )
    process = devloop.popen("up", "--headless")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(DEADLINE) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_follow_goes_on_until_the_engine_ends(devloop: Cli) -> None:
    devloop("up", "--detach")
    follow = devloop.popen("logs", "-f", "api")
    assert follow.stdout is not None and follow.stderr is not None
    assert follow.stdout.readline() == "api | hello\n"
    devloop("restart", "api")
    assert follow.stdout.readline() == "api | hello\n"
    devloop("down")
    assert follow.wait(DEADLINE) == 0
    follow.stdout.close()
    follow.stderr.close()


def test_up_names_services_and_groups_and_joins_a_running_engine(devloop: Cli) -> None:
    devloop("up", "--detach", "back")
    states = {s.name: s.state for s in Snapshot.from_json(json.loads(devloop("status", "--json").stdout)).services}
    assert states == {"api": "ready", "web": "off"}
    devloop("up", "--detach", "web")
    assert "ready" in devloop("status", "web").stdout


def test_another_virtual_environment_than_the_engine_s_is_told(devloop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/venv/one")
    devloop("up", "--detach", "api")
    assert "VIRTUAL_ENV" not in devloop("up", "--detach").stderr
    monkeypatch.setenv("VIRTUAL_ENV", "/venv/two")
    told = devloop("up", "--detach").stderr
    assert "/venv/one" in told and "/venv/two" in told and "devloop down" in told


def test_what_is_no_project_leaves_no_folder_behind(devloop: Cli) -> None:
    (devloop.folder / "empty.toml").write_text("")
    assert "no services" in devloop("-f", "empty.toml", "up", "--detach", code=2).stderr
    assert not (devloop.folder / ".devloop").exists()
    (devloop.folder / ".devloop").mkdir()
    (devloop.folder / ".devloop" / "mine").touch()
    devloop("-f", "empty.toml", "up", "--detach", code=2)
    assert (devloop.folder / ".devloop" / "mine").exists()


def test_a_failed_service_is_exit_code_1(devloop: Cli) -> None:
    (devloop.folder / "devloop.toml").write_text(
        '[services.api]\ncommand = "sh -c \'exit 3\'"\nrestart = "never"\nready = { log = "never printed" }\n'
    )
    assert "exited with 3" in devloop("up", "--detach", code=1).stdout
    devloop("status", code=1)


def test_exec_and_env_show_the_world_of_a_service(devloop: Cli) -> None:
    assert devloop("exec", "api", "--", "sh", "-c", "echo $GREETING; exit 5", code=5).stdout == "good day\n"
    table = devloop("env", "api").stdout
    assert "good day" in table and "hunter2" not in table
    assert "hunter2" in devloop("env", "api", "--reveal").stdout
    assert json.loads(devloop("env", "api", "--format", "json").stdout)["API_TOKEN"] == "hunter2"
    script = devloop("env", "api", "--format", "shell").stdout + "echo $GREETING"
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout == "good day\n"
    assert "GREETING=good day" in devloop("env", "api", "--format", "docker").stdout
    assert "PATH" not in table
    assert "PATH" in devloop("env", "api", "--all").stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["up", "--headless", "apy"], 2, 'did you mean "api"?'),
        (["up", "--detach", "apy"], 2, 'did you mean "api"?'),
        (["status"], 1, "devloop up"),
        (["-f", "nowhere.toml", "status"], 2, "no such project file"),
        (["stats", "--since", "yesterday"], 2, "30m, 12h, 7d"),
        (["exec", "api"], 2, "no command"),
        (["exec", "api", "--", "no-such-program"], 127, "no such program"),
        (["exec", "back", "--", "true"], 2, "is a group"),
        (["init"], 2, "--force"),
        (["dance"], 2, "there is no command 'dance'"),
    ],
)
def test_mistakes_say_what_and_what_to_do(devloop: Cli, args: list[str], code: int, words: str) -> None:
    assert words in devloop(*args, code=code).stderr


@pytest.mark.parametrize(
    ("content", "mode", "code", "words"),
    [
        ("exit $1\n", 0o755, 12, ""),  # without "#!" it is the shell's
        ("exit 0\n", 0o644, 126, "is it an executable file?"),
        ("#!/bin/sh\r\nexit 0\r\n", 0o755, 126, "ends as on Windows"),
        ("#!/nowhere/sh\n", 0o755, 126, "there is no /nowhere/sh"),
    ],
)
def test_exec_ends_as_a_shell_does(devloop: Cli, content: str, mode: int, code: int, words: str) -> None:
    script = devloop.folder / "script"
    script.write_bytes(content.encode())
    script.chmod(mode)
    assert words in devloop("exec", "api", "--", "./script", "12", code=code).stderr


def test_check_reports_every_problem_with_its_place(devloop: Cli) -> None:
    assert "2 services, no problems" in devloop("check").stdout
    (devloop.folder / "devloop.toml").write_text(
        '[services.api]\ncomand = "x"\ndepends_on = ["wep"]\n[services.web]\ncommand = "x"\n'
    )
    for command in (["check"], ["up", "--headless"], ["up", "--detach"]):
        stderr = devloop(*command, code=2).stderr
        assert "devloop.toml:2:1: " in stderr and '"command"' in stderr
        assert "devloop.toml:3:15: " in stderr and '"web"' in stderr


def test_no_project_file_is_a_hint_to_init(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    assert "devloop init" in cli("status", code=2).stderr
    (tmp_path / "Procfile").write_text("web: python3 -m http.server 8099\n")
    assert "http.server" in cli("init", "--stdout").stdout
    cli("init")
    assert "no problems" in cli("check").stdout


def test_schema_doctor_and_completion(devloop: Cli) -> None:
    assert json.loads(devloop("schema").stdout)["$schema"]
    assert "inotify" in devloop("doctor").stdout
    assert all(finding["level"] for finding in json.loads(devloop("doctor", "--json").stdout))
    script = devloop("completion", "bash").stdout
    assert "toggle" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_help_lists_every_command_and_imports_nothing_heavy(devloop: Cli) -> None:
    text = devloop("--help").stdout
    for command in (
        "up",
        "down",
        "status",
        "toggle",
        "restart",
        "logs",
        "stats",
        "export",
        "exec",
        "env",
        "doctor",
    ):
        assert f"\n    {command} " in text
    code = "import sys; from devloop.cli import parser; parser().format_help(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert not {"asyncio", "pydantic", "textual", "sqlite3", "json", "subprocess"} & set(modules)
    assert parser().prog == "devloop"


def test_the_tui_on_a_terminal_of_80_by_24_and_q_stops_everything(devloop: Cli) -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(devloop.folder)
        os.environ.update(TERM="xterm-256color", LINES="24", COLUMNS="80", CI="")
        os.execv(sys.executable, [sys.executable, "-m", "devloop.cli", "up"])
    screen = b""

    def until(text: bytes) -> None:
        nonlocal screen
        deadline = time.monotonic() + DEADLINE
        while text not in screen:
            assert time.monotonic() < deadline, screen[-2000:]
            if select.select([fd], [], [], 0.1)[0]:
                screen += os.read(fd, 65536)

    until(b"web")
    until(b"ready")
    os.write(fd, b"q")
    until(b"leave")  # it asks
    os.write(fd, b"s")
    deadline = time.monotonic() + DEADLINE
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline
        if select.select([fd], [], [], 0.05)[0]:
            try:
                screen += os.read(fd, 65536)
            except OSError:
                break
    os.close(fd)
    assert "nothing runs" in devloop("down").stdout


@pytest.mark.parametrize(
    ("variables", "piped", "reason"),
    [
        ({"TERM": "dumb"}, False, "the terminal can't show a screen (TERM=dumb)"),
        ({"TERM": ""}, False, "TERM is not set"),
        ({"CI": "true"}, False, "CI is set"),
        ({}, True, "standard output is not a terminal"),
    ],
)
def test_where_no_screen_can_be_shown_it_is_headless_and_says_so(
    devloop: Cli, variables: dict[str, str], piped: bool, reason: str
) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "devloop.cli", "up"],
        cwd=devloop.folder,
        stdin=slave,
        stdout=subprocess.PIPE if piped else slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "CI": "", **variables},
        start_new_session=True,
    )
    os.close(slave)
    source = process.stdout.fileno() if process.stdout else master
    said, deadline = b"", time.monotonic() + DEADLINE
    while b"hello" not in said or b"headless" not in said:
        assert time.monotonic() < deadline, said
        for ready in select.select({source, master}, [], [], 0.1)[0]:  # may be one: read twice, it would block
            said += os.read(ready, 65536)
    process.terminate()
    if process.stdout:
        said += process.stdout.read()
        process.stdout.close()
    assert process.wait(DEADLINE) == 130
    os.close(master)
    assert said.count(f"devloop: {reason}: runs as `devloop up --headless`".encode()) == 1
    assert b"\x1b[?1049h" not in said


def test_a_closed_terminal_stops_everything(devloop: Cli) -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(devloop.folder)
        os.environ.update(TERM="xterm-256color", CI="")
        os.execv(sys.executable, [sys.executable, "-m", "devloop.cli", "up"])
    deadline = time.monotonic() + DEADLINE
    screen = b""
    while b"ready" not in screen:
        assert time.monotonic() < deadline
        if select.select([fd], [], [], 0.1)[0]:
            screen += os.read(fd, 65536)
    os.close(fd)  # the kernel sends SIGHUP, as it does when a terminal window is closed
    os.waitpid(pid, 0)
    wait_gone(str(devloop.folder))


class TestOrder:
    """Tasks and what waits for them."""

    def config(self, devloop: Cli, text: str) -> None:
        (devloop.folder / "devloop.toml").write_text(text)

    TASK = "[services.seed]\ncommand = \"sh -c 'exit 4'\"\ntask = true\n"
    WEB = '[services.web]\ncommand = "sleep 600"\nwatch = []\n'

    def test_a_failed_task_ends_the_wait_and_is_named(self, devloop: Cli) -> None:
        last = '[services.last]\ncommand = "sleep 600"\ndepends_on = "web"\n'
        self.config(devloop, self.TASK + self.WEB + 'depends_on = { seed = "completed" }\n' + last)
        began = time.monotonic()
        result = devloop("up", "--detach", "--wait", "50", code=1)
        assert time.monotonic() - began < 40
        assert "devloop: web waits for seed, which exited with 4; see `devloop logs seed`" in result.stderr
        assert "devloop: last waits for web, which waits for seed, which exited with 4" in result.stderr
        assert "seed exited with 4" in result.stderr

    def test_a_long_wait_is_told_while_it_lasts(self, devloop: Cli) -> None:
        self.config(devloop, f'{self.WEB}ready = {{ tcp = "{free_port()}" }}\n')
        process = devloop.popen("up", "--detach")
        assert process.stdout is not None and process.stderr is not None
        assert process.stderr.readline().startswith("devloop: waiting for web (waiting: nothing listens on localhost:")
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=DEADLINE)[1]
        assert err == "devloop: no longer waiting; the engine goes on: `devloop down` ends it\n"
        assert process.returncode == 130

    def test_what_is_late_is_named_with_its_reason(self, devloop: Cli) -> None:
        ready = 'ready = { exec = "false", period = "10ms", grace = "0s" }\n'
        last = '[services.last]\ncommand = "sleep 600"\ndepends_on = "web"\n'
        self.config(devloop, self.WEB + ready + last)
        error = devloop("up", "--detach", "--wait", "1.5", code=1).stderr
        assert "web (not ready: `false` exited with 1)" in error
        assert "last (waits for web)" in error

    @pytest.mark.parametrize(("task", "code"), [("exit 0", 0), ("exit 5", 5), ("kill -9 $$$$", 137)])
    def test_headless_ends_with_its_tasks(self, devloop: Cli, task: str, code: int) -> None:
        first = '[services.first]\ncommand = "true"\ntask = true\n'
        then = (
            f'[services.then]\ncommand = ["sh", "-c", "{task}"]\ntask = true\ndepends_on = {{ first = "completed" }}\n'
        )
        self.config(devloop, first + then)
        result = devloop("up", "--headless", code=code)
        assert ("then e" in result.stderr) == bool(code)

    def test_headless_ends_with_the_task_that_was_asked_for(self, devloop: Cli) -> None:
        test = '[services.test]\ncommand = "sh -c \'echo testing; exit 6\'"\ntask = true\ndepends_on = "web"\n'
        self.config(devloop, self.WEB + test)
        result = devloop("up", "--headless", "test", code=6)
        assert "test | testing" in result.stdout
        assert "all stopped" in result.stderr

    def test_headless_says_what_is_wrong(self, devloop: Cli) -> None:
        ready = 'ready = { exec = "false", period = "10ms", grace = "0s" }\n'
        web = '[services.last]\ncommand = "sleep 600"\ndepends_on = { seed = "completed" }\n'
        self.config(devloop, self.TASK + self.WEB + ready + web)
        process = devloop.popen("up", "--headless")
        assert process.stdout is not None and process.stderr is not None
        lines = {process.stderr.readline() for _ in range(3)}
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=DEADLINE)[1]
        assert lines == {
            "devloop: seed exited with 4\n",
            "devloop: last waits for seed, which exited with 4; see `devloop logs seed`\n",
            "devloop: web is not ready: `false` exited with 1\n",
        }
        assert "waits" not in rest

    def test_a_task_by_the_clock(self, devloop: Cli) -> None:
        self.config(devloop, '[services.job]\ncommand = "echo ran"\ntask = true\nevery = "1s"\n')
        result = devloop("up", "--detach")
        assert "next run " in result.stdout
        deadline = time.monotonic() + DEADLINE
        while devloop("logs").stdout.count("ran") < 2:
            assert time.monotonic() < deadline
        assert "next run " in devloop("status").stdout or "the task runs" in devloop("status").stdout


@pytest.mark.parametrize("command", [("env",), ("exec",)])
@pytest.mark.parametrize(
    ("word", "said"), [("svc/api", "deployment/api"), ("deploymnt/api", "did you mean"), ("a/b/c", "known")]
)
def test_a_word_that_is_no_workload_is_told_at_once(
    tmp_path: Path, command: tuple[str, ...], word: str, said: str
) -> None:
    rest = ("--", "true") if command == ("exec",) else ()
    found = Cli(tmp_path)(*command, "-w", word, *rest, code=2)
    assert found.stderr.startswith("devloop: --workload: '") and said in found.stderr

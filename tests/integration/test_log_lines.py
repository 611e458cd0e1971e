"""Every line arrives: `up --headless` and `logs -f` into a pipe, slow readers, and what no terminal should get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import DEADLINE, wait_gone
from tests.integration.test_cli import Cli

pytestmark = pytest.mark.slow

LINES = 200_000
FLOOD = f"""\
import sys
for first in range(0, {LINES}, 500):
    numbers = range(first, first + 500)
    sys.stdout.write("".join(f"{{n:07d}} the quick brown fox jumps over the lazy dog\\n" for n in numbers))
"""
CONFIG = f"""\
[services.flood]
command = ["{sys.executable}", "flood.py"]
mode = "off"
restart = "never"
watch = []
[services.quiet]
command = "sh -c 'echo here; exec sleep 600'"
watch = []
"""


@pytest.fixture
def devloop(tmp_path: Path) -> Iterator[Cli]:
    (tmp_path / "devloop.toml").write_text(CONFIG)
    (tmp_path / "flood.py").write_text(FLOOD)
    cli = Cli(tmp_path)
    yield cli
    subprocess.run([sys.executable, "-m", "devloop.cli", "down"], cwd=tmp_path, check=False, capture_output=True)
    wait_gone(str(tmp_path))


def numbers(lines: list[str]) -> list[int]:
    return [int(line.split()[2]) for line in lines if "quick brown fox" in line]


def test_a_slow_reader_of_headless_makes_the_service_wait_and_nobody_else(devloop: Cli) -> None:
    process = devloop.popen("up", "--headless")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "quiet | here\n"
    devloop("toggle", "flood", "local")
    first = process.stdout.readline()  # from here on nobody reads
    assert numbers([first]) == [0]
    devloop("restart", "quiet")
    (status,) = json.loads(devloop("status", "--json", "quiet").stdout)["services"]
    assert (status["state"], status["restarts"]) == ("ready", 1)
    (status,) = json.loads(devloop("status", "--json", "flood").stdout)["services"]
    assert status["state"] == "ready", "it waits"
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"flood | {LINES - 1:07d}"):
            break
    assert numbers(lines) == list(range(1, LINES))
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 130
    assert "too quickly" not in process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_follow_gives_every_line_and_the_files_have_them_too(devloop: Cli) -> None:
    devloop("up", "--detach", "quiet")
    follow = devloop.popen("logs", "-f", "-n", "1")
    assert follow.stdout is not None and follow.stderr is not None
    assert follow.stdout.readline() == "quiet | here\n"
    devloop("toggle", "flood", "local")
    lines = []
    for line in follow.stdout:
        lines.append(line)
        if line.startswith(f"flood | {LINES - 1:07d}"):
            break
    assert numbers(lines) == list(range(LINES))
    answer = devloop("logs", "flood", "-n", "100000")
    assert "earlier lines are in files only" in answer.stderr
    devloop("down")
    assert follow.wait(DEADLINE) == 0
    assert "more quickly than they were read" not in follow.stderr.read()
    follow.stdout.close()
    follow.stderr.close()
    kept = devloop("logs", "flood", "-n", str(10 * LINES)).stdout.splitlines()
    assert [int(line.split()[0]) for line in kept if "quick" in line] == list(range(LINES))


ODD = rb"""
import os, time
os.write(1, b"\x1b[2J\x1b[Hone\n\x1bctwo\n\x1b]0;title\x07three\n\x1b[31mred\n\xff\xfe invalid \x9b\n")
os.write(1, b"n\0u\0l\0\r\n" + b"x" * 100_000 + b"\n")
os.write(1, b"split \x1b[3"); time.sleep(0.02); os.write(1, b"2mgreen\x1b[0m\n")
os.write(1, b'{"level":"error","msg":"no"}\nERROR: two\n  of it\nINFO: three\nend\n')
time.sleep(600)
"""


def test_odd_bytes_are_lines_and_obeyed_by_nobody(devloop: Cli) -> None:
    (devloop.folder / "odd.py").write_bytes(ODD)
    (devloop.folder / "devloop.toml").write_text(
        f'[services.odd]\ncommand = ["{sys.executable}", "odd.py"]\nwatch = []\nready = {{ log = "^end$" }}\n'
    )
    devloop("up", "--detach")
    shown = devloop("logs").stdout
    lines = [line.removeprefix("odd | ") for line in shown.splitlines()]
    assert lines[:4] == ["one", "two", "three", "\x1b[31mred\x1b[0m"]
    assert lines[4] == "\ufffd\ufffd invalid \ufffd"
    assert lines[5] == "nul"
    assert "bytes cut by devloop]" in lines[6]
    assert lines[7] == "split \x1b[32mgreen\x1b[0m"
    assert [line.removeprefix("odd | ") for line in devloop("logs", "--level", "warning").stdout.splitlines()] == [
        '{"level":"error","msg":"no"}',
        "ERROR: two",
        "  of it",
    ]
    levels = [json.loads(line)["level"] for line in devloop("logs", "--json").stdout.splitlines()]
    assert levels[-5:] == ["error", "error", "", "info", ""]
    devloop("down")
    offline = devloop("logs", "--level", "error").stdout
    assert offline.splitlines() == ['{"level":"error","msg":"no"}', "ERROR: two", "  of it"]
    assert "\x1b[31m" not in _plain(devloop)


def _plain(devloop: Cli) -> str:
    return subprocess.run(
        [sys.executable, "-m", "devloop.cli", "logs"],
        cwd=devloop.folder,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    ).stdout

"""What a user, a disk, a terminal or a pipe does is answered in words, with an exit code, and never by a traceback."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devloop.cli import main
from devloop.state import StateFolder
from tests.waiting import until

pytestmark = pytest.mark.slow

CONFIG = '[services.api]\ncommand = "sleep 600"\nwatch = []\n'


def shell(script: str, folder: Path, **environ: str) -> tuple[int, str]:
    """Run a script in which `devloop` is the command; its exit code, and all that it prints."""
    function = f'devloop() {{ "{sys.executable}" -m devloop.cli "$@"; }}\n'
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(
        ["bash", "-c", function + script],
        cwd=folder,
        env={**variables, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    text = result.stdout.decode(errors="surrogateescape")
    assert "Traceback" not in text and "Exception ignored" not in text, text
    return result.returncode, text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "devloop.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("command", ["check", "--help", "--version", "help up", "completion bash"])
def test_a_full_disk_behind_standard_output_is_a_failure(folder: Path, command: str) -> None:
    code, text = shell(f"devloop {command} >/dev/full", folder)
    assert code == 1 and "can't write to standard output: no space left on device" in text


def test_who_has_read_enough_is_no_failure(folder: Path) -> None:
    for command in ("schema", "--help", "help"):
        code, text = shell(f"set -o pipefail; devloop {command} | true", folder)
        assert (code, text) == (0, "")


def test_what_is_closed_is_done_without(folder: Path) -> None:
    assert shell("devloop check >&-", folder) == (0, "")
    assert shell("devloop check 2>&- <&- >&-", folder) == (0, "")
    assert shell("devloop status 2>&-", folder) == (1, "")
    assert shell("devloop status 2>/dev/full", folder) == (1, "")


def test_a_closed_output_is_no_place_for_a_file(folder: Path) -> None:
    code, _ = shell("devloop export -o out.csv --format csv >&- 2>&-", folder)
    assert code == 0 and (folder / "out.csv").read_text().startswith("id,")


@pytest.mark.parametrize("target", ["/nonexistent/x", ".", "/dev/full"])
def test_a_target_that_cannot_be_written(folder: Path, target: str) -> None:
    code, text = shell(f"devloop export -o {target}", folder)
    assert code == 1 and f"{target}: can't be written" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a=" + b"[" * 50_000, "nested too deeply"),
        (b"a=" + b"9" * 10_000, "too many digits"),
        (b"a" * (9 << 20), "larger than 8 MiB"),
        (b'[services.a]\ncommand = "x"\nenv_file = "x\\u0000"\ncwd = "\\u0000"\n', "NUL character"),
        (bytes(range(256)) * 9, "not UTF-8 text"),
    ],
    ids=["brackets", "digits", "large", "null", "binary"],
)
def test_a_project_file_that_is_none(folder: Path, content: bytes, words: str) -> None:
    (folder / "devloop.toml").write_bytes(content)
    code, text = shell("devloop check", folder)
    assert code == 2 and words in text


def test_a_project_file_that_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    for file, words in (("pipe", "a named pipe"), ("/dev/zero", "a device"), ("a", "a link to b"), ("x", "no such")):
        code, text = shell(f"devloop status -f {file}", folder)
        assert code == 2 and words in text


@pytest.mark.parametrize("environ", [{}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_a_name_that_is_not_utf_8(folder: Path, environ: dict[str, str]) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))
    odd.mkdir()
    (odd / "devloop.toml").write_text(CONFIG)
    code, text = shell("devloop check && devloop env api && devloop export >/dev/null", odd, **environ)
    assert code == 0 and "/\udcff/devloop.toml: 1 service" in text


def test_no_home_and_no_variables_at_all(folder: Path) -> None:
    code, text = shell(f'env -i "{sys.executable}" -m devloop.cli check', folder)
    assert code == 0, text


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        (".devloop", Path.touch, "this is a file, and devloop's state folder has to be there"),
        (".devloop/engine.lock", Path.mkdir, "can't make engine.lock"),
        (".devloop/control.sock", Path.mkdir, "can't make the control socket"),
    ],
)
def test_what_is_in_the_way_of_the_state_folder(folder: Path, name: str, make: object, words: str) -> None:
    assert callable(make)
    (folder / name).parent.mkdir(exist_ok=True)
    make(folder / name)
    code, text = shell("devloop up --detach", folder)
    assert code == 1 and words in text


@pytest.mark.parametrize("words", ["logs --since 9999999999999999d", "stats --since 99999999999999999d"])
def test_an_age_before_all_times(folder: Path, words: str) -> None:
    code, text = shell(f"devloop {words}", folder)
    assert code in (0, 1), text


def test_ctrl_c_while_devloop_is_still_imported_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("devloop.terminal.guarded", interrupted)
    try:
        code = main(["version"])
    except KeyboardInterrupt:
        pytest.fail("a traceback")
    assert code == 130


def test_ctrl_c_while_something_is_waited_for_is_130(folder: Path) -> None:
    (folder / "devloop.toml").write_text(CONFIG + 'ready = { log = "never printed" }\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "devloop.cli", "up", "--detach"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    state = StateFolder(folder)
    asyncio.run(until(state.socket.is_socket, 60))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr
    shell("devloop down", folder)
    assert state.engine() is None


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a disk of its own takes root")
def test_a_disk_that_fills_up_stops_nothing_and_is_told_once(folder: Path) -> None:
    script = """
        mount -t tmpfs -o size=1m tmpfs . && cd "$PWD" || exit 9
        printf '[services.api]\\ncommand = "sh -c \\047while echo hello; do sleep 0.01; done\\047"\\nwatch = []\\n' \
            > devloop.toml
        devloop up --detach || exit 8
        dd if=/dev/zero of=fill bs=1k 2>/dev/null
        for n in 1 2 3; do devloop restart api; done
        for n in $(seq 100); do  # until both are told: the files are written by threads
            devloop status --json > /dev/shm/$$.json
            grep -q "can't be written to" /dev/shm/$$.json && grep -q "can't be kept" /dev/shm/$$.json && break
        done
        cat /dev/shm/$$.json; rm /dev/shm/$$.json
        devloop down || exit 7
        devloop up --detach && devloop status && devloop down
    """
    function = f'devloop() {{ "{sys.executable}" -m devloop.cli "$@"; }}\n'
    (folder / "script").write_text(function + script)
    code, text = shell("unshare -m bash script", folder)
    assert code == 0, text
    assert text.count("can't be written to") == 1 and text.count("The history of loops can't be kept") == 1
    assert "please report it" not in text


@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-", ">/dev/full 2>/dev/full", ">&- 2>&- <&-"])
def test_an_engine_outlives_what_it_prints_to(folder: Path, how: str) -> None:
    script = f"""
        devloop up --headless {how} &
        pid=$!
        for n in $(seq 100); do devloop status >/dev/null 2>&1 && break; sleep 0.1; done
        devloop status && devloop restart api && devloop status && devloop down && wait $pid
    """
    code, text = shell(script, folder)
    assert code == 0 and text.count("ready") == 2, text

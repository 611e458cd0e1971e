"""A test that is stuck ends, whatever it is stuck in, and so does the run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LOOPS = """
import asyncio, uvloop
def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""
TESTS = """
import asyncio, threading, time
import pytest

async def deep():
    await asyncio.Event().wait()

async def never_ends():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def test_waits():
    await asyncio.create_task(deep(), name="the-deep-one")

async def test_blocks_the_loop():
    time.sleep(1000)

async def test_blocks_in_a_callback():
    asyncio.get_running_loop().call_soon(threading.Event().wait)
    await deep()

@pytest.fixture
async def before():
    await deep()
    yield

async def test_stuck_before(before):
    pass

@pytest.fixture
async def after():
    yield
    await deep()

async def test_stuck_after(after):
    assert False, "failed before that"

async def test_stuck_in_the_end_of_the_loop():
    asyncio.create_task(never_ends(), name="the-endless-one")
    await asyncio.sleep(0)

async def test_well():
    pass
"""


def run(folder: Path, *options: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text(LOOPS)
    (folder / "test_these.py").write_text(TESTS)
    command = [
        *(sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder), "-p", "tests.stuck", "-rA"),
        *("-o", "asyncio_mode=auto", "-o", "timeout=1", "-o", "stuck_grace=3", "-p", "no:cacheprovider"),
        *("--tb=short", *(options or [str(folder)])),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        text=True,
        errors="replace",
        timeout=100,
    )
    return done.returncode, done.stdout


def test_every_stuck_test_fails_on_both_loops_and_the_run_goes_on(tmp_path: Path) -> None:
    code, said = run(tmp_path, "-n", "3", "test_these.py")
    assert code == 1, said
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S+::test_(\w+)\[(\w+)\]", said, re.MULTILINE)
    for loop in ("asyncio", "uvloop"):
        results = {(name, outcome) for outcome, name, its in found if its == loop}
        for name in ("waits", "blocks_the_loop", "blocks_in_a_callback"):
            assert (name, "FAILED") in results, said
        # pytest-xdist calls it failed where its worker had to be ended.
        assert {("stuck_before", "ERROR"), ("stuck_before", "FAILED")} & results, said
        assert {("stuck_after", "ERROR"), ("stuck_after", "FAILED")} <= results, said
        end = "stuck_in_the_end_of_the_loop"
        assert {(end, "ERROR"), (end, "FAILED")} & results, said
        assert ("well", "PASSED") in results, said
    assert "task the-deep-one of asyncio.unix_events._UnixSelectorEventLoop" in said
    assert "task the-deep-one of uvloop.Loop" in said
    assert "in deep\n    await asyncio.Event().wait()" in said
    assert "task the-endless-one of" in said
    assert "Timeout (>1s)" in said


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_alone_too(tmp_path: Path, loop: str) -> None:
    code, said = run(tmp_path, f"test_these.py::test_waits[{loop}]", f"test_these.py::test_well[{loop}]")
    assert code == 1, said
    assert "1 failed, 1 passed" in said
    assert "the-deep-one" in said


def test_what_stays_after_the_last_test_is_ended(tmp_path: Path) -> None:
    (tmp_path / "test_thread.py").write_text(
        "import threading\ndef test_thread():\n    threading.Thread(target=threading.Event().wait).start()\n"
    )
    code, said = run(tmp_path, "test_thread.py", "-o", "stuck_grace=1")
    assert code == 1
    assert "1 passed" in said
    assert "most recent call first" in said

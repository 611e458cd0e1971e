"""A test that is stuck ends at its timeout, on either event loop, and says where each of its tasks stands.

A pytest plugin, in place of pytest-timeout's timer (which keeps reading `timeout` and its marks). The timer's own ways
do not do: an exception from a signal handler is swallowed by a loop that is running a callback, and by uvloop always;
and it ends nothing that is stuck in a fixture or in the loop's own end. So here, once the time is over:

1. the stacks of all threads and tasks are written down, in the test's report,
2. the main thread is interrupted: its loop is stopped, or what blocks it gets an exception; what comes after (fixtures,
   the end of the loop) has `stuck_grace` seconds more, with an interruption at each third of them,
3. then the process ends, with the stacks on standard error. pytest-xdist takes that for a failure of the test, and goes
   on with a new worker.

A process of pytest's that does not end after its last test is ended too, after the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import pytest_timeout

GRACE = "stuck_grace"
STEPS = 3
"""Interruptions before the process is ended."""
EXIT_CODE = 70
"""Of a process that nothing else could end (EX_SOFTWARE in sysexits.h)."""
INTERRUPT = signal.SIGALRM


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(GRACE, "seconds that a test past its timeout has to end its fixtures", default="30")


_watch = pytest.StashKey["Watch"]()
_stderr = pytest.StashKey[int]()
_fired = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # now, while nothing is captured yet


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    # What is left to do may take long: old folders are removed. A worker of pytest-xdist's waits for the others.
    if not hasattr(session.config, "workerinput") or session.config.stash.get(_fired, False):
        end_after(session.config, 10 * grace(session.config))


def grace(config: pytest.Config) -> float:
    return float(config.getini(GRACE))


def end_after(config: pytest.Config, seconds: float) -> None:
    """End this process with the stacks of its threads, in place of any end set before. In C: Python can't stop it."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_stderr])


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool:
    end_after(item.config, settings.timeout + 2 * grace(item.config))  # if the thread gets stuck itself
    item.stash[_watch] = Watch(item, settings)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    """Called at each failure, for a debugger's sake: but what a failed test leaves to its fixtures may be stuck too."""
    if item.config.getoption("usepdb") and (watch := item.stash.get(_watch, None)) is not None:
        watch.end()
        faulthandler.cancel_dump_traceback_later()
    return True


def pytest_enter_pdb() -> None:
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:
        if (watch := item.stash.get(_watch, None)) is not None:
            watch.end()
            if watch.fired:  # what it leaves may refuse to be collected, too
                item.config.stash[_fired] = True
                end_after(item.config, grace(item.config))
            else:
                faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def _within(item: pytest.Item) -> Iterator[None]:
    """Outside of these three an exception would be pytest's own end."""
    watch = item.stash.get(_watch, None)
    if watch is not None:
        watch.within = True
    try:
        return (yield)
    finally:
        if watch is not None:
            watch.within = False


pytest_runtest_setup = pytest_runtest_call = pytest_runtest_teardown = _within


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc]
    watch = item.stash.get(_watch, None)
    if watch is not None and watch.fired and not watch.told:
        watch.told = True
        if report.passed:  # it came to its end while it was looked at
            report.outcome, report.longrepr = "failed", watch.title
        elif (crash := getattr(report.longrepr, "reprcrash", None)) is not None and watch.title not in crash.message:
            crash.message = f"{watch.title}: {crash.message}"  # the loop's own words do not say why it was stopped
    return report  # type: ignore[return-value]


class Watch:
    """The timer of one test: a thread, since the main one is what may be stuck."""

    def __init__(self, item: pytest.Item, settings: pytest_timeout.Settings) -> None:
        self.title = f"Timeout (>{settings.timeout:g}s)"
        self.fired = False
        self.told = False
        self.within = False
        self._item = item
        self._settings = settings
        self._over = threading.Event()
        self._steps = 0
        self._pause = grace(item.config) / STEPS
        self._before = signal.signal(INTERRUPT, self._interrupt)
        self._thread = threading.Thread(target=self._run, name="timeout", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The test is over, or a debugger has it."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            signal.signal(INTERRUPT, self._before)

    def _run(self) -> None:
        if self._over.wait(self._settings.timeout):
            return
        if not self._settings.disable_debugger_detection and pytest_timeout.is_debugging():
            return
        self.fired = True
        self._item.add_report_section("at the timeout", "stacks", stacks())
        for _ in range(STEPS):
            if self._over.is_set():
                return
            signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)
            if self._over.wait(self._pause):
                return
        text = f"\n{self.title}, and nothing ends it: {self._item.nodeid}\n{stacks()}\n"
        with contextlib.suppress(OSError):
            os.write(self._item.config.stash[_stderr], text.encode(errors="replace"))
        os._exit(EXIT_CODE)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        self._steps += 1
        loop = asyncio._get_running_loop()
        # An exception in a loop that waits for events is nobody's on uvloop; a loop in a callback that never ends
        # can't be stopped. Which of them it is can't be seen, so each gets its turn.
        if loop is not None and self._steps % 2:
            loop.call_soon_threadsafe(loop.stop)
        elif self.within:
            pytest.fail(self.title, pytrace=True)


def stacks() -> str:
    """Where every thread and every task of every loop stands."""
    out = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            out.write(f"--- thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}")
    for loop in [each for each in gc.get_objects() if issubclass(type(each), asyncio.AbstractEventLoop)]:
        tasks: set[asyncio.Task[Any]] = set()
        with contextlib.suppress(RuntimeError):  # it changes meanwhile
            tasks = asyncio.all_tasks(loop)
        for task in sorted(tasks, key=lambda each: each.get_name()):
            out.write(f"--- task {task.get_name()} of {type(loop).__module__}.{type(loop).__name__}\n")
            with contextlib.suppress(RuntimeError):
                task.print_stack(file=out)
    return out.getvalue()

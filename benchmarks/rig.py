"""What is measured: a tiny service that says when it starts, the tools that run it, and their clean end."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

DEVLOOP = [sys.executable, "-m", "devloop.cli"]
"""The devloop of this checkout, by the interpreter that runs the benchmarks."""

STUB = r"""
/* A service whose first act is to write down the time. One write below PIPE_BUF is never torn. */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (argc > 1) {
        char line[96];
        int size = snprintf(line, sizeof line, "%s %d %lld\n", argc > 2 ? argv[2] : "-", (int)getpid(),
                            now.tv_sec * 1000000000LL + now.tv_nsec);
        int fifo = open(argv[1], O_WRONLY | O_NONBLOCK);
        if (fifo >= 0 && write(fifo, line, size) != size) return 1;
        close(fifo);
    }
    for (;;) pause();
}
"""

FLOOD = r"""
/* Prints `rate` lines a second for `seconds`, in bursts of 10 ms, then reports how many it could write. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
    long rate = atol(argv[2]), seconds = atol(argv[3]), burst = rate / 100, sent = 0;
    long long begin = now();
    char *buffer = malloc(burst * 128);
    for (long tick = 0; tick < seconds * 100; tick++) {
        size_t size = 0;
        for (long i = 0; i < burst; i++, sent++)
            size += sprintf(buffer + size, "%012ld the quick brown fox jumps over the lazy dog\n", sent);
        for (size_t done = 0; done < size;) {
            ssize_t n = write(1, buffer + done, size - done);
            if (n <= 0) return 1;
            done += n;
        }
        long long wait = begin + (tick + 1) * 10000000LL - now();
        if (wait > 0) {
            struct timespec t = {wait / 1000000000LL, wait % 1000000000LL};
            nanosleep(&t, NULL);
        }
    }
    char line[96];
    int size = snprintf(line, sizeof line, "flood %ld %lld\n", sent, now() - begin);
    int fifo = open(argv[1], O_WRONLY | O_NONBLOCK);
    if (fifo >= 0 && write(fifo, line, size) != size) return 1;
    for (;;) pause();
}
"""


@cache
def workspace() -> Path:
    """A folder for this run; removed at its end. Not in /tmp's tmpfs if a disk is there: /var/tmp."""
    base = "/var/tmp" if os.access("/var/tmp", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="devloop-bench-", dir=base))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def compiled(name: str, source: str) -> str:
    """The program's path. Static where that works: no dynamic loader runs before its first instruction."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("the benchmarks need a C compiler (cc) for their service")
    file, program = workspace() / f"{name}.c", workspace() / name
    file.write_text(source)
    for extra in (["-static"], []):
        if subprocess.run([compiler, "-O2", *extra, "-o", program, file], capture_output=True).returncode == 0:
            return str(program)
    raise SystemExit(f"{compiler} can't compile {file}")


def stub() -> str:
    return compiled("stub", STUB)


def flood() -> str:
    return compiled("flood", FLOOD)


@dataclass(frozen=True, slots=True)
class Started:
    """A line from a service: who, with which number (pid), when (monotonic nanoseconds)."""

    name: str
    pid: int
    at: int


class Fifo:
    """Where services write to."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""
        self._ready: list[Started] = []

    def read(self, timeout: float) -> Started | None:
        """The next line, None if none comes in time."""
        end = time.monotonic() + timeout
        while not self._ready:
            left = end - time.monotonic()
            if not select.select([self._fd], [], [], max(left, 0))[0]:
                return None
            *lines, self._rest = (self._rest + os.read(self._fd, 65536)).split(b"\n")
            for line in lines:
                name, pid, at = line.decode().split()
                self._ready.append(Started(name, int(pid), int(at)))
        return self._ready.pop(0)

    def drain(self) -> list[Started]:
        """What has come unasked."""
        found = []
        while (line := self.read(0)) is not None:
            found.append(line)
        return found

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def running(
    command: Sequence[str], cwd: Path, *, stdin: bytes | None = None, environ: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A tool in a session of its own. At the end it and all that it started is ended, and that is seen to."""
    log = (cwd / "tool.log").open("ab")
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**os.environ, **(environ or {})},
    )
    try:
        if stdin is not None:
            assert process.stdin is not None
            process.stdin.write(stdin)
            process.stdin.close()
        yield process
    finally:
        end(process)
        log.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGINT, as Ctrl-C would; whoever of its family is left after 10 s is killed."""
    family = family_of(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(family, timeout=5)


def family_of(pid: int) -> list[psutil.Process]:
    """All descendants, those in sessions of their own too."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int, seconds: float = 5) -> bool:
    end_at = time.monotonic() + seconds
    while not gone(pid):
        if time.monotonic() > end_at:
            return False
        time.sleep(0.001)
    return True

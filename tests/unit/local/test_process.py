"""What the engine says to a holder arrives whole, whatever its size; what can't be started is told with words."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from devloop.errors import EngineError
from devloop.local import holder
from devloop.local.process import Ended, Holder, Holders


class Listener:
    def __init__(self) -> None:
        self.failed: tuple[str, str] | None = None

    def job_started(self, pid: int, at: int) -> None: ...

    def job_failed(self, error: str, hint: str) -> None:
        self.failed = error, hint

    def job_ended(self, ended: Ended) -> None: ...


def start(it: Holder, job: str, value: str, listener: Listener) -> None:
    reading, writing = os.pipe()
    try:
        it.start(job, ["true"], cwd=Path("/"), env={"V": value}, output=(writing, writing), listener=listener)
    finally:
        os.close(reading)
        os.close(writing)


async def test_messages_larger_than_the_socket_takes_arrive_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    it = Holder("api", ours, lambda _: None)
    value = "x" * (16 << 20)  # nobody reads yet
    start(it, "one", value, Listener())
    start(it, "two", value, Listener())
    it.signal("one", 15)
    with theirs:
        for job in ("one", "two"):
            received = await asyncio.wait_for(asyncio.to_thread(holder.receive, theirs), 30)
            assert received is not None
            message, fds = received
            assert message["job"] == job and message["env"]["V"] == value and len(fds) == 2
            for fd in fds:
                os.close(fd)
        received = await asyncio.wait_for(asyncio.to_thread(holder.receive, theirs), 30)
        assert received is not None and received[0]["op"] == "signal"
        it.close()


async def test_a_job_whose_descriptors_can_not_wait_is_refused_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    it = Holder("api", ours, lambda _: None)
    start(it, "one", "x" * (16 << 20), Listener())

    def no_more(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", no_more)
    with pytest.raises(EngineError, match="oo many open files"):
        start(it, "two", "x", Listener())
    assert it.jobs == ("one",)
    it.close()
    theirs.close()


@pytest.mark.parametrize(
    ("event", "said", "hint"),
    [
        ({"ev": "unheld", "errno": errno.EAGAIN}, "that is to hold it can't be started", "ulimit -u"),
        ({"ev": "failed", "errno": errno.EAGAIN}, "Resource temporarily unavailable", "ulimit -u"),
        ({"ev": "failed", "errno": errno.E2BIG}, "arguments and environment are larger", "in a file"),
    ],
)
async def test_a_limit_of_the_machine_is_named(event: dict[str, object], said: str, hint: str) -> None:
    ours, theirs = socket.socketpair()
    it = Holder("api", ours, lambda _: None)
    listener = Listener()
    start(it, "one", "x", listener)
    holder.send(theirs, {"job": "one", "error": "?", "cwd": False, "file": "", **event})
    it._readable()
    assert listener.failed is not None and said in listener.failed[0] and hint in listener.failed[1]
    it.close()
    theirs.close()


def test_a_root_holder_that_can_not_fork_says_so_and_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, theirs = socket.socketpair()
    ours, given = socket.socketpair()

    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(holder.signal, "signal", lambda *_: None)
    monkeypatch.setattr(holder.signal, "set_wakeup_fd", lambda *_, **__: -1)
    monkeypatch.setattr(holder, "children", lambda _: [])
    holder.send(engine, {"op": "hold", "service": "api"}, (given.fileno(),))
    given.close()
    engine.shutdown(socket.SHUT_WR)
    holder.Root(theirs).run()
    received = holder.receive(ours)
    assert received is not None and received[0] == {"ev": "unheld", "errno": errno.EAGAIN}
    ours.close()
    engine.close()


@pytest.mark.parametrize(("code", "said"), [(-9, "was killed"), (1, "has ended (exit code 1)")])
def test_how_the_root_holder_has_ended_is_told(code: int, said: str) -> None:
    class Process:
        def poll(self) -> int:
            return code

    holders = Holders()
    holders._sock, theirs = socket.socketpair()
    holders._process = Process()  # type: ignore[assignment]
    theirs.close()
    with pytest.raises(EngineError) as told:
        holders.get("api")
    assert said in told.value.what
    holders._sock.close()

"""A command in a pod is anybody's: what it prints has bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from devloop.errors import RemoteError
from devloop.remote.workload import kube
from devloop.remote.workload.kube import KubeCluster, _Exec


class Socket:
    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages = messages
        self.closed = False

    async def receive(self) -> Any:
        return SimpleNamespace(data=next(self._messages, None))

    async def close(self) -> None:
        self.closed = True


def cluster(monkeypatch: pytest.MonkeyPatch, messages: Iterator[bytes]) -> tuple[KubeCluster, Socket, _Exec]:
    socket = Socket(messages)
    stream = _Exec(socket)
    found = object.__new__(KubeCluster)

    async def made(*_: Any, **__: Any) -> _Exec:
        return stream

    monkeypatch.setattr(found, "_exec", made)
    return found, socket, stream


async def test_what_is_printed_and_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    over = json.dumps({"status": "Success"}).encode()
    found, socket, _ = cluster(monkeypatch, iter((b"\x01one ", b"\x02bad", b"\x01two", b"\x03" + over)))
    ran = await found.run("web-0", "main", ["cat"])
    assert (ran.stdout, ran.stderr, ran.code, socket.closed) == (b"one two", b"bad", 0, True)


async def test_one_that_prints_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "PRINTED_BYTES", 1000)
    monkeypatch.setattr(kube, "ERROR_BYTES", 1000)

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b"\x02" + b"e" * 99
            yield b"\x01" + b"o" * 99
        raise AssertionError("it is still read")

    found, socket, stream = cluster(monkeypatch, endless())
    with pytest.raises(RemoteError, match="cat prints without end"):
        await found.run("web-0", "main", ["cat"])
    assert socket.closed and len(stream.stderr) <= 1000

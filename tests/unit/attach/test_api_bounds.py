"""Whoever answers the agent in the API server's place has no memory of its pod."""

from __future__ import annotations

import io
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from devloop.agent import presence
from devloop.agent.kube import ERROR_BYTES, error_text
from devloop.agent.presence import ClusterApi


class Endless(io.RawIOBase):
    """`text` again and again."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = (self.text * (len(buffer) // len(self.text) + 1))[: len(buffer)]
        buffer[:] = part
        self.given += len(part)
        assert self.given < 1_000_000
        return len(part)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterApi:
    (tmp_path / "namespace").write_text("shop")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(presence, "LINE_BYTES", 10_000)
    monkeypatch.setattr(presence, "ANSWER_BYTES", 10_000)
    return ClusterApi(tmp_path)


def test_a_line_of_a_watch_has_an_end(api: ClusterApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_open", lambda *_, **__: io.BufferedReader(Endless(b"x")))
    with pytest.raises(OSError, match="no end"):
        list(api.lines("/", 1))
    monkeypatch.setattr(api, "_open", lambda *_, **__: io.BytesIO(b"one\ntwo\n"))
    assert list(api.lines("/", 1)) == [b"one\n", b"two\n"]


def test_an_answer_has_an_end(api: ClusterApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_open", lambda *_, **__: io.BufferedReader(Endless(b" ")))
    with pytest.raises(OSError, match="no end"):
        api.call("GET", "/")
    monkeypatch.setattr(api, "_open", lambda *_, **__: io.BytesIO(b'{"a": 1}'))
    assert api.call("GET", "/") == {"a": 1}


def test_an_error_has_an_end() -> None:
    endless = Endless(b"[")
    error_text(urllib.error.HTTPError("u", 500, "no", Message(), io.BufferedReader(endless)))
    assert endless.given <= ERROR_BYTES * 2

"""What a service prints is kept in few pieces, and a terminal that can't be opened leaves nothing open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devloop.local.logs import LogBook
from devloop.local.terminal import CHUNK, KEPT, Output, ServiceTerminal, Wiring


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough


def test_byte_by_byte_is_kept_in_few_pieces() -> None:
    output = Output()
    printed = bytes(n % 251 for n in range(KEPT + 3 * CHUNK))
    for at in range(len(printed)):
        output.add(printed[at : at + 1])
    assert len(output._chunks) <= KEPT // CHUNK + 2
    data, after, missed = output.since(0, 2 * KEPT)
    assert after == output.end == len(printed)
    assert data == printed[missed:] and KEPT <= len(data) <= KEPT + CHUNK
    assert output.since(output.end - 3, 2)[0] == printed[-3:-1]


@pytest.mark.parametrize(("tty", "call"), [(False, 1), (False, 2), (False, 3), (True, 1), (True, 2)])
async def test_what_was_opened_is_closed_if_the_rest_can_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tty: bool, call: int
) -> None:
    book = LogBook(tmp_path, lambda _: None)
    opens = {"pipe2": os.pipe2, "openpty": os.openpty, "dup": os.dup}
    done = 0

    def limited(name: str, *args: object) -> object:
        nonlocal done
        done += 1
        if done >= call:
            raise OSError(24, "Too many open files")
        return opens[name](*args)  # type: ignore[operator]

    for name in opens:
        monkeypatch.setattr(os, name, lambda *args, name=name: limited(name, *args))
    before = open_files()
    with pytest.raises(OSError, match="Too many"):
        Wiring(ServiceTerminal("api", lambda _: None), book, ("out", "err"), tty=tty)
    assert open_files() == before
    book.close()

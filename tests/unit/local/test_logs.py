"""The ring, the splitter and the rotated files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.local import logs
from devloop.local.logs import MAX_BYTES, MAX_LINE, MAX_LINES, LineSplitter, LogBook, LogFiles


def book() -> LogBook:
    return LogBook(None, lambda _: None)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_lines_are_the_same_however_they_arrive(data: bytes, cuts: list[int]) -> None:
    splitter = LineSplitter()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    lines = [line for a, b in pairwise(edges) for line in splitter.feed(data[a:b])] + splitter.flush()
    expected = data.split(b"\n")
    assert lines == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize("pieces", [[b"x" * (3 * MAX_LINE) + b"\n"], [b"x" * 1000] * (3 * MAX_LINE // 1000) + [b"\n"]])
def test_an_overlong_line_is_cut_and_says_by_how_much(pieces: list[bytes]) -> None:
    splitter = LineSplitter()
    (line,) = [line for piece in pieces for line in splitter.feed(piece)]
    total = sum(map(len, pieces)) - 1
    assert line.startswith(b"x" * MAX_LINE)
    assert f"[{total - MAX_LINE} bytes cut by devloop]".encode() in line
    assert splitter.feed(b"next\n") == [b"next"], "and nothing of it is left"


def test_an_unfinished_overlong_line_grows_no_memory() -> None:
    splitter = LineSplitter()
    for _ in range(1000):
        splitter.feed(b"x" * 10_000)
    assert len(splitter._rest) <= MAX_LINE


def test_the_ring_keeps_the_newest_within_lines_and_bytes() -> None:
    it = book()
    for number in range(30):
        it.add("api", "out", [f"{number}-{i}".encode() for i in range(1000)])
    lines = it.tail(["api"], 10**6)
    assert len(lines) <= MAX_LINES
    assert lines[-1].text == "29-999"
    for _ in range(30):
        it.add("api", "out", [b"x" * 1000] * 1000)
    assert it._rings["api"].size <= MAX_BYTES


def test_one_chunk_larger_than_the_ring_is_cut() -> None:
    it = book()
    it.add("api", "out", [b""] * (3 * MAX_LINES))
    assert it.cursor == 3 * MAX_LINES
    assert len(it.tail(None, 10**6)) == MAX_LINES


def test_since_tells_what_is_new_and_what_was_passed_over() -> None:
    it = book()
    it.add("api", "out", [b"a", b"b"])
    _, cursor, _ = it.since(None, 0, 10)
    it.add("web", "err", [b"c"])
    it.add("api", "out", [b"d", b"e"])
    lines, cursor, dropped = it.since(None, cursor, 2)
    assert [(line.service, line.stream, line.text) for line in lines] == [
        ("api", "out", "d"),
        ("api", "out", "e"),
    ]
    assert dropped == 1
    assert it.since(None, cursor, 10)[0] == []
    assert [line.text for line in it.since(["web"], 2, 10)[0]] == ["c"]


def test_broken_utf8_ansi_and_progress_bars() -> None:
    it = book()
    it.add("api", "out", [b"caf\xc3\xa9 \xff", b"\x1b[31mred\x1b[0m", b"10%\r50%\r100%", b"dos\r"])
    assert [line.text for line in it.tail(None, 9)] == ["café �", "\x1b[31mred\x1b[0m", "100%", "dos"]


def test_a_line_that_is_waited_for_is_told_once() -> None:
    it = book()
    seen: list[int] = []
    it.when("api", r"listening on \d+", lambda: seen.append(1))
    it.add("web", "out", [b"listening on 80"])
    it.add("api", "out", [b"not yet"])
    assert not seen
    it.add("api", "out", [b"x", b"listening on 80", b"listening on 81"])
    it.add("api", "out", [b"listening on 82"])
    assert seen == [1]


def test_files_are_rotated_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_SIZE", 1000)
    files = LogFiles(tmp_path)
    for number in range(50):
        files.write("api", f"{number:099}\n".encode())
    files.close()
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["api.log", "api.log.1", "api.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    assert (tmp_path / "api.log").read_text().splitlines()[-1].endswith("49")


def test_a_disk_that_is_too_slow_costs_lines_in_the_file_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogFiles, "PENDING", 1000)
    monkeypatch.setattr(LogFiles, "_run", lambda _: None)  # a disk that takes nothing
    files = LogFiles(tmp_path)
    for _ in range(100):
        files.write("api", b"x" * 100)
    assert files._pending <= 1000
    assert files._dropped == {"api": 90 * 100}
    files.close()


def test_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    files = LogFiles(tmp_path / "gone")
    files.write("api", b"x\n")
    files.close()

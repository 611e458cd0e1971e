"""The ring, the splitter and the rotated files."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.local import logfiles
from devloop.local.logfiles import LogFiles, last_lines
from devloop.local.logs import MAX_LINE, LineSplitter, LogBook, PipeReader
from devloop.local.ring import HELD_BYTES, MAX_BYTES, MAX_LINES


def book() -> LogBook:
    return LogBook(None, lambda _: None)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_lines_are_the_same_however_they_arrive(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\r", b"")  # see the test of bars
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


def test_a_matcher_sees_through_colours_and_unfinished_lines() -> None:
    it = book()
    seen: list[int] = []
    it.when("api", r"listening on \d+", lambda: seen.append(1))
    it.add("api", "out", [b"listening on \x1b[36m80\x1b[0m"])
    it.when("api", r"ready>", lambda: seen.append(2))
    it.partial("api", "out", b"ready> ")
    assert seen == [1, 2]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=200), st.lists(st.integers(0, 4000)))
def test_of_a_bar_the_last_state_is_kept_however_it_arrives(states: list[int], cuts: list[int]) -> None:
    bar = "x" * 300
    data = "".join(f"\r{state:3d}%|{bar}|" for state in states).encode() + b"\nnext\n"
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    splitter, it = LineSplitter(), book()
    for a, b in pairwise(edges):
        it.add("api", "err", splitter.feed(data[a:b]))
        assert len(splitter.partial) <= 2 * 306
    assert [line.text for line in it.tail(None, 9)] == [f"{states[-1]:3d}%|{bar}|", "next"]


def test_a_bar_that_ends_its_states_with_the_return_is_kept_too() -> None:
    splitter = LineSplitter()
    splitter.feed(b"10%\r")
    splitter.feed(b"20%\r      \r")
    assert splitter.partial == b"\r20%\r      \r"
    assert splitter.feed(b"\r\n") == [b"\r20%\r      \r\r"]


def test_an_unfinished_line_is_told_until_it_has_its_end() -> None:
    it = book()
    it.add("api", "out", [b"a"])
    it.partial("api", "out", b"Password: ")
    it.partial("web", "err", b"10%")
    found, revision = it.partials(["api"], 0)
    assert [(line.text, line.partial) for line in found] == [("Password: ", True)]
    assert it.partials(["api"], revision) == ([], revision)
    assert [line.text for line in it.tail(None, 9)] == ["a"], "it is no line yet"
    assert it.since(None, 0, 9)[2] == 0
    it.add("api", "out", [b"Password: x"])
    assert it.partials(["api"], 0)[0] == []


def test_a_follower_gets_every_line_that_memory_holds_for_it() -> None:
    it = book()
    it.add("api", "out", [b"before"])
    follower = it.follow(None)
    line = b"x" * 99
    for number in range(200):
        it.add("api", "out", [line] * 1000)
        it.add(f"new{number % 3}", "err", [b"%d" % number])
    assert it._rings["api"].count >= 200_000, "held beyond what a ring keeps"
    got: list[str] = []
    order: list[str] = []
    while follower.pending:
        chunks, missed = follower.read(100_000)
        assert missed == 0
        assert sum(len(text) for _, _, _, text in chunks) < 300_000
        for service, _, _, text in chunks:
            got += text.split("\n") if service == "api" else []
            order += [service, text] if service != "api" else []
    assert len(got) == 200_000
    assert order[1::2] == [str(n) for n in range(200)], "in the order in which they came"
    it.add("api", "out", [line])
    assert it._rings["api"].count <= MAX_LINES, "and nothing is held once it is read"


def test_what_a_follower_missed_is_counted_and_memory_is_bounded() -> None:
    it = book()
    follower, other = it.follow(["api"]), it.follow(["web"])
    total = 0
    while it._rings.get("api") is None or it._rings["api"].start == 0:
        it.add("api", "out", [b"x" * 1000] * 1000)
        total += 1000
    assert it._rings["api"].size <= HELD_BYTES
    count = lost = 0
    while follower.pending:
        chunks, missed = follower.read(10**6)
        count += sum(text.count("\n") + 1 for _, _, _, text in chunks)
        lost += missed
    assert lost > 0
    assert count + lost == total
    assert not other.pending
    follower.close()
    assert it.follow(["api"]).read(10**6) == ([], 0)


def test_a_service_that_comes_again_is_followed_anew() -> None:
    it = book()
    it.add("api", "out", [b"old"] * 5)
    follower = it.follow(None)
    it.forget("api")
    it.add("api", "out", [b"new"])
    assert [text for *_, text in follower.read(100)[0]] == ["new"]


def test_files_are_rotated_private_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfiles, "SMALLEST", 10)
    (tmp_path / "api.log.37").write_text("of a longer setting")
    files = LogFiles(tmp_path, 10_000)
    for number in range(500):
        files.write("api", f"{number:099}\n".encode())
    files.close()
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["api.log", *(f"api.log.{n}" for n in range(1, 10))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    lines = last_lines(tmp_path / "api.log", 10_000)
    assert [int(line) for line in lines] == list(range(400, 500)), "as much as was asked for, with no gap"
    assert last_lines(tmp_path / "api.log", 3) == lines[-3:]


def test_a_keep_of_nothing_writes_nothing(tmp_path: Path) -> None:
    files = LogFiles(tmp_path, 0)
    files.write("api", b"x\n")
    files.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_slow_costs_lines_in_the_file_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfiles, "PENDING", 1000)
    go_on = threading.Event()
    monkeypatch.setattr(LogFiles, "_append", lambda *_: go_on.wait(10))  # a disk that takes nothing
    files = LogFiles(tmp_path)
    for _ in range(100):
        files.write("api", b"x" * 99 + b"\n")
    assert files._queued <= 1000
    monkeypatch.undo()
    go_on.set()
    files.close()
    assert "[devloop: 9000 bytes left out, the disk was too slow]" in (tmp_path / "api.log").read_text()


def test_a_full_disk_ends_nothing_and_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    failing = LogFiles._append

    def append(self: LogFiles, service: str, data: bytes) -> None:
        if b"lost" in data:
            raise full
        failing(self, service, data)

    monkeypatch.setattr(LogFiles, "_append", append)
    files = LogFiles(tmp_path, tell=told.append)
    for line in (b"first\n", b"lost 1\n", b"lost 2\n", b"last\n"):
        files.write("api", line)
    files.close()
    assert told == [f"what services print can't be written to {tmp_path}: No space left on device"]
    assert (tmp_path / "api.log").read_text() == (
        "first\n[devloop: 14 bytes left out, they could not be written]\nlast\n"
    )


def test_the_disk_s_own_word_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "api.log").mkdir()
    files = LogFiles(tmp_path, tell=told.append)
    files.write("api", b"x\n")
    files.close()
    assert told == [f"what services print can't be written to {tmp_path}: Is a directory"]


def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    files = LogFiles(tmp_path / "gone")
    files.write("api", b"x\n")
    files.close()
    assert (tmp_path / "gone" / "api.log").read_text() == "x\n"


class Full:
    """A sink that is full until told otherwise."""

    def __init__(self) -> None:
        self.is_full = False
        self.got: list[tuple[list[bytes], bool]] = []

    def put(self, service: str, at: int, stream: str, lines: list[bytes], *, partial: bool) -> None:
        self.got.append((lines, partial))

    def full(self, service: str) -> bool:
        return self.is_full


async def test_a_pipe_is_not_read_while_the_sink_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.local.logs.PARTIAL", 0.05)
    monkeypatch.setattr("devloop.local.logs.READ_PAUSE", 0.0)
    sink = Full()
    arrived = asyncio.Event()
    it = LogBook(None, lambda _: arrived.set(), sink=sink)
    reader = PipeReader(it, "api", "out")
    sink.is_full = True
    os.write(reader.write_end, b"one\nand half of ano")
    await asyncio.wait_for(arrived.wait(), 10)
    os.set_blocking(reader.write_end, False)
    with pytest.raises(BlockingIOError):  # the pipe fills up: its writer would wait
        while True:
            os.write(reader.write_end, b"x" * 4095 + b"\n")
            await asyncio.sleep(0)
    await asyncio.sleep(0.1)  # past the moment at which half a line would be shown: nothing is to happen
    assert sink.got == [([b"one"], False)]
    arrived.clear()
    sink.is_full = False
    it.may_go_on("api")
    await asyncio.wait_for(arrived.wait(), 10)
    assert sink.got[1][0][0].startswith(b"and half of anox"), "a line that we do not read is not taken for a prompt"
    reader.close()


async def test_a_prompt_and_a_moving_bar_are_shown_before_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Full()
    arrived = asyncio.Event()
    monkeypatch.setattr("devloop.local.logs.PARTIAL", 0.01)
    reader = PipeReader(LogBook(None, lambda _: arrived.set(), sink=sink), "api", "out")
    for data in (b"Password: ", b"secret\n\r 10%", b"\r 20%"):
        os.write(reader.write_end, data)
        while not sink.got or not sink.got[-1][1]:
            arrived.clear()
            await asyncio.wait_for(arrived.wait(), 10)
        sink.got.append(([b"--"], False))
    reader.close()
    assert [(b"|".join(lines).decode(), partial) for lines, partial in sink.got if lines != [b"--"]] == [
        ("Password: ", True),
        ("Password: secret", False),
        ("\r 10%", True),
        ("\r 20%", True),
        ("\r 20%", False),
    ]

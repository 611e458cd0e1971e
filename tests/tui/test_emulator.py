"""What a program prints, as a screen; keys, as a program reads them; prompts, as they are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.emulator import Emulator
from tui.keycodes import encode


def shown(data: bytes, columns: int = 20, rows: int = 4) -> list[str]:
    emulator = Emulator(columns, rows)
    emulator.feed(data)
    return [line.rstrip() for line in emulator.text()]


def test_a_progress_bar_overwrites_itself() -> None:
    assert shown(b"10%\r50%\r100%\r\ndone") == ["100%", "done", "", ""]


def test_node_inspect_draws_its_prompt_so() -> None:
    assert shown(b"\x1b[1G\x1b[0Jdebug> \x1b[8Gn\x1b[1G\x1b[0Jdebug> ne\x1b[10G")[0] == "debug> ne"


@pytest.mark.parametrize(
    "sequence",
    [f"\x1b[{'9' * 5000}C", f"\x1b[{'9' * 4000}\0{'9' * 4000}C", "\x1b[7K", "\x1b[9J", "\x9b7K"],
    ids=["digits", "digits in parts", "erase in line", "erase in display", "C1"],
)
def test_numbers_that_pyte_does_not_know_end_nothing(sequence: str) -> None:
    emulator = Emulator(20, 2)
    emulator.feed(sequence.encode())
    emulator.feed(b"\x1b[2J\x1b[Hstill there")
    assert emulator.text()[0].rstrip() == "still there"


def test_a_pipes_lines_begin_at_the_left() -> None:
    emulator = Emulator(10, 3)
    emulator.lines_only = True
    emulator.feed(b"one\ntwo\r\nthree")
    assert [line.rstrip() for line in emulator.text()] == ["one", "two", "three"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x1b[>4;1mplain",  # xterm's modifyOtherKeys is no colour
        b"\x1b[?4mplain",
        b"\x1b[!pplain",
        b"\x1b[2 qplain",
        b"\x1bP+q544e\x1b\\plain",
        b"\x1b]0;title\x07plain",
        b"\x1b]8;;http://x\x1b\\plain\x1b]8;;\x1b\\",
        b"\x1b[1;2;3;4Aplain",
        b"\x1b[?2004h\x1b[?1049hplain",
    ],
)
def test_sequences_that_pyte_does_not_know_leave_no_trace(data: bytes) -> None:
    for cut in range(len(data) + 1):
        emulator = Emulator(20, 4)
        emulator.feed(data[:cut])
        emulator.feed(data[cut:])
        assert emulator.text()[0].rstrip() == "plain", cut
        cell = emulator.row(0)[0]
        assert not cell.bold and not cell.underscore


def test_it_tells_what_the_program_asks() -> None:
    asked: list[str] = []
    emulator = Emulator(20, 4, asked.append)
    emulator.feed(b"ab\x1b[6n")
    assert asked == ["\x1b[1;3R"]


def test_a_characters_bytes_may_be_apart() -> None:
    emulator = Emulator(20, 4)
    for byte in "né 字".encode():
        emulator.feed(bytes((byte,)))
    assert emulator.text()[0].rstrip() == "né 字"


def test_a_smaller_view_keeps_the_line_with_the_cursor() -> None:
    emulator = Emulator(20, 6)
    emulator.feed(b"one\r\ntwo\r\n(Pdb) ")
    emulator.resize(20, 2)
    assert [line.rstrip() for line in emulator.text()] == ["two", "(Pdb)"]
    assert emulator.cursor == (6, 1)
    emulator.resize(30, 6)
    emulator.feed(b"n")
    assert "(Pdb) n" in [line.rstrip() for line in emulator.text()]


@given(st.lists(st.binary(max_size=30) | st.text("\x1b[]?;>0123456789mHJKABCDfrhlnPXc\\ \n\r\x07a").map(str.encode)))
def test_nothing_breaks_it(parts: list[bytes]) -> None:
    emulator = Emulator(7, 3)
    for part in parts:
        emulator.feed(part)
        emulator.resize(5 + len(part) % 4, 1 + len(part) % 5)
        for y in range(emulator.size[1]):
            assert len(emulator.row(y)) == emulator.size[0]
        if emulator.cursor is not None:
            assert emulator.cursor[0] < emulator.size[0] and emulator.cursor[1] < emulator.size[1]


@pytest.mark.parametrize(
    ("key", "character", "data"),
    [
        ("a", "a", b"a"),
        ("question_mark", "?", b"?"),
        ("é", "é", "é".encode()),
        ("enter", "\r", b"\r"),
        ("tab", "\t", b"\t"),
        ("backspace", "\x7f", b"\x7f"),
        ("ctrl+c", "\x03", b"\x03"),
        ("ctrl+q", "\x11", b"\x11"),
        ("up", None, b"\x1b[A"),
        ("ctrl+left", None, b"\x1b[1;5D"),
        ("shift+tab", None, b"\x1b[Z"),
        ("delete", None, b"\x1b[3~"),
        ("f1", None, b"\x1bOP"),
        ("f5", None, b"\x1b[15~"),
        ("escape", "\x1b", b"\x1b"),
        ("alt+b", None, b"\x1bb"),
        ("f35", None, b""),
    ],
)
def test_keys_are_sent_as_xterm_sends_them(key: str, character: str | None, data: bytes) -> None:
    assert encode(key, character) == data


def test_a_program_may_ask_for_other_arrow_keys() -> None:
    emulator = Emulator(20, 4)
    emulator.feed(b"\x1b[?1h\x1b[?2004h")
    assert encode("up", None, application=emulator.application_keys) == b"\x1bOA"
    assert emulator.marks_pastes

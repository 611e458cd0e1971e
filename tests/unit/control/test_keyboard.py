"""Keys before they are sent: the way back, and lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.control.keyboard import LEAVE, Leaving, LineEditor


def test_ctrl_p_ctrl_q_gives_the_keyboard_back_however_it_arrives() -> None:
    assert Leaving().feed(b"abc" + LEAVE + b"def") == (b"abc", True)
    leaving = Leaving()
    assert leaving.feed(b"a\x10") == (b"a", False)
    assert leaving.feed(b"\x11") == (b"", True)


def test_ctrl_p_alone_is_passed_on_with_the_next_key() -> None:
    leaving = Leaving()
    assert leaving.feed(b"\x10") == (b"", False)
    assert leaving.feed(b"\x10") == (b"\x10", False)
    assert leaving.feed(b"x") == (b"\x10x", False)
    assert leaving.feed(b"\x11") == (b"\x11", False)


@given(st.lists(st.binary(max_size=4)))
def test_nothing_else_is_lost(parts: list[bytes]) -> None:
    leaving, passed = Leaving(), b""
    for part in parts:
        data, left = leaving.feed(part)
        passed += data
        if left:
            break
    whole = b"".join(parts)
    assert whole.startswith(passed)
    assert LEAVE in whole or whole in (passed, passed + b"\x10")


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        (b"n\r", b"n\n"),
        (b"one\rtwo\n", b"one\ntwo\n"),
        (b"pp x\x7fy\r", b"pp y\n"),
        ("naï\x7fi\r".encode(), b"nai\n"),
        (b"some words\x17else\r", b"some else\n"),
        (b"gone\x15kept\r", b"kept\n"),
        (b"\x7f\x7f\x17\x15a\r", b"a\n"),
        (b"a\x1b[A\x1b[1;5Cb\x1bOA\r", b"ab\n"),
        (b"a\x04\r", b"a\n"),
        (b"dropped\x03kept\r", b"kept\n"),
    ],
)
def test_lines_are_edited_as_a_terminal_would(keys: bytes, sent: bytes) -> None:
    assert LineEditor().feed(keys).send == sent


def test_what_is_typed_is_shown_and_wiped_by_cells() -> None:
    editor = LineEditor()
    assert editor.feed("a字".encode()).echo == "a字".encode()
    assert editor.feed(b"\x7f").echo == b"\b \b\b \b"
    assert editor.feed(b"\x7f").echo == b"\b \b"
    assert editor.feed(b"\x7f").echo == b""
    edited = editor.feed(b"\x03")
    assert edited.interrupt and edited.echo == b"^C\r\n" and not edited.send

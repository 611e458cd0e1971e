"""What of other people's words reaches a terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.escapes import RESET, is_plain, line, name, plain, screen, words
from devloop.metrics.table import columns
from devloop.terminal import data, guarded, keeps_colour, styled, unguarded, wants_colour


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[31mred", f"\x1b[31mred{RESET}"),
        ("\x1b[38;2;1;2;3mx\x1b[m", "\x1b[38;2;1;2;3mx\x1b[m"),
        ("\x1b[2J\x1b[3J\x1b[Hone", "one"),
        ("\x1bctwo", "two"),
        ("\x1b[?25lthree\x1b[?1049h", "three"),
        ("\x1b]0;title\x07four", "four"),
        ("\x1b]52;c;aGVsbG8=\x1b\\five", "five"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP+q544e\x1b\\six", "six"),
        ("\x1b_payload\x1b\\seven", "seven"),
        ("\x1b[>4;2meight", "eight"),  # not SGR, though it ends in m
        ("\x9b31mnine\x9dtitle\x9c", f"\x1b[31mnine{RESET}"),  # C1
        ("\x1b[6n\x1b[c\x05ten", "ten"),  # what a terminal would answer
        ("\x1b(0eleven\x0e", "eleven"),
        ("\x1b[5;10r\x1b[2Ltwelve", "twelve"),
        ("an end \x1b", "an end "),
        ("an end \x1b[31;", "an end "),
        ("\x1b]0;no end", "0;no end"),
        ("h\0e\0y\0", "hey"),
        ("user\u202eexe.txt\u202c \u2066admin\u2069 \u202a\u202b\u202d\u2067\u2068", "userexe.txt admin "),
        ("\u200f\u05d0\u200e", "\u200f\u05d0\u200e"),  # marks of direction turn nothing around
        ("tab\tand é, 日本, 🎉", "tab\tand é, 日本, 🎉"),
        ("N\bNA\bA", "NA"),
        ("\x1b[31mN\bN\x1b[0m", "\x1b[31mN\x1b[0m"),
        ("|\b/\b-\b\\", "\\"),
        ("windows\r", "windows"),
        ("windows\r\r", "windows"),
        ("10%\r20%\r100%", "100%"),
        ("10%\r100%\r", "100%"),
        ("100%\r    \r", "100%"),
        ("long words\x1b[2K\rok", "ok"),
        ("\r\x1b[K 50%", " 50%"),
        ("\x1b[1A\x1b[2K\rlayer: done\r\x1b[1B", "layer: done"),  # docker pull
        ("\x1b[2K\x1b[1Gnpm", "npm"),
        ("\x1b7 10%\x1b8\x1b7 20%\x1b8", " 20%"),  # apt
        ("Starting\x1b[40G[ ok ]", "Starting [ ok ]"),
        ("a\x1b[3Cb", "a   b"),
        ("ab\x1b[1Dc", "ac"),
    ],
)
def test_of_a_line_colours_and_its_last_state_are_left(text: str, shown: str) -> None:
    assert line(text) == shown
    assert plain(text) == re.sub(r"\x1b\[[0-9;]*m", "", shown)


@given(st.text(alphabet=st.sampled_from("\x1b\x9b\x9d\x90\x9c\x07\b\r[]0123;?mHJhlcPX_\\ aé\0\x7f"), max_size=60))
def test_nothing_else_ever_passes(text: str) -> None:
    for kind, allowed in ((line, r"(?:\x1b\[[0-9;:]*m)?"), (plain, ""), (words, "")):
        left = kind(text)
        if allowed:
            left = re.sub(r"\x1b\[[0-9;:]*m", "", left)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", left)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.sub(r"\x1b\[[0-9;:]*m", "", screen(text)))


@given(st.text(alphabet=st.sampled_from("\x1b[m31 ab\r\b"), max_size=40))
def test_to_clean_twice_changes_nothing(text: str) -> None:
    assert line(line(text)) == line(text)


def test_text_that_is_all_introducers_takes_no_time() -> None:
    for mark in ("\x1b]", "\x9d", "\x1b[", "\b", "\x1b[1D", "\x1b[200C"):
        line(mark * 8000)


def test_words_keep_their_lines() -> None:
    assert words("one\n\ttwo\x1b[31m\x1b]0;x\x07 three\r\n") == "one\n\ttwo three\n"


def test_a_name_is_one_line() -> None:
    assert name("one\n\ttwo\x1b[31m\u202e\x85three") == "one twothree"
    assert columns(("A", "B"), [("one\nforged  row", "\x1b[8mtwo\x1b]52;c;eA==\x07")], "<<") == (
        "A               B\none forged row  two"
    )


def test_what_is_plain_is_told_from_bytes() -> None:
    assert is_plain(b"one\n\ttwo ~")
    for one in (b"\x1b", b"\r", b"\0", b"\x7f", b"\xc2\x9b", b"\xff"):
        assert not is_plain(b"one\n" + one)


def test_whatever_is_printed_is_guarded(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        print("\x1b[31mwords\x1b[2J")
        print("what: \x1b[31m\x1b[2Jfile", file=sys.stderr)
        styled("\x1b[32mgood\x1b[2J\n")
        data("\x1b[31mdata\x1b[2J\n")
    assert capsys.readouterr() == ("words\n\x1b[32mgood\n\x1b[31mdata\x1b[2J\n", "what: file\n")


def test_what_a_terminal_is_to_obey_goes_past_the_guard(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        unguarded(sys.stderr).write("\x1b[?25h\r\n")
    unguarded(sys.stderr).write("\x1b[m")
    assert capsys.readouterr().err == "\x1b[?25h\r\n\x1b[m"


def test_a_terminal_s_output_and_one_with_a_small_alphabet(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", write_through=True)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", stream)
    with guarded():
        print("\x1b[32m✓\x1b[0m\x1b[2J")
        styled("\x1b[32m✓\x1b[0m\x1b[2J\n")
        data("\x1b[32m✓\x1b[0m\x1b[2J\n")
    assert raw.getvalue() == b"\\u2713\n\x1b[32m\\u2713\x1b[0m\n\\u2713\n"
    assert sys.stdout is stream


@pytest.mark.parametrize(
    ("environ", "terminal", "wants", "keeps"),
    [
        ({}, False, False, True),
        ({}, True, True, True),
        ({"NO_COLOR": "1"}, True, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False, False),
        ({"FORCE_COLOR": "1"}, False, True, True),
        ({"FORCE_COLOR": "0"}, True, False, True),
        ({"TERM": "dumb"}, True, False, False),
        ({"TERM": "dumb"}, False, False, True),
    ],
)
def test_when_there_are_colours(environ: dict[str, str], terminal: bool, wants: bool, keeps: bool) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    assert wants_colour(stream, environ) is wants
    assert keeps_colour(stream, environ) is keeps


@pytest.mark.parametrize("final", "CDGHm")
def test_a_number_may_have_more_digits_than_python_reads(final: str) -> None:
    text = line(f"one\x1b[{'9' * 5000}{final}two")
    assert re.sub(r"\x1b\[[0-9]*m|\s", "", text) in ("onetwo", "two")

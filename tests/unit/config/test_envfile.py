"""Env files: the rules of compose-go's dotenv package, and the places where devloop is stricter."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.commands.world import _dotenv
from devloop.config import envfile
from devloop.config.envfile import read_env_text
from devloop.config.problems import Findings

FILE = Path("/p/.env")
HOST = {"HOST_VAR": "host", "A": "of the host", "EMPTY_VAR": ""}


def read(text: str | bytes, environ: dict[str, str] | None = None) -> dict[str, str]:
    """The variables; the file has no problem."""
    findings = Findings()
    content = text.encode() if isinstance(text, str) else text
    values = read_env_text(content, FILE, HOST if environ is None else environ, findings)
    assert not findings, findings.problems({})
    return values


def refuse(text: str) -> list[tuple[int, int, str]]:
    """The problems: line, column, message."""
    findings = Findings()
    read_env_text(text.encode(), FILE, {}, findings)
    return [(p.line, p.column, p.message) for p in findings.problems({})]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        # Unquoted.
        ("X=bar", "bar"),
        ("X =bar", "bar"),
        ("X= bar", "bar"),
        ("  X=bar  ", "bar"),
        ("\tX=bar", "bar"),
        ("X=", ""),
        ("X=   ", ""),
        ("X=a b  c", "a b  c"),
        ("X: 1", "1"),
        ("X: Foo=bar", "Foo=bar"),
        ("X=1:B", "1:B"),
        ("X=foobar=", "foobar="),
        ("X=bar # comment", "bar"),
        ("X=bar #comment", "bar"),
        ("X=bar\t# comment", "bar"),
        ("X=bar #", "bar"),
        ("X=123#not-a-comment", "123#not-a-comment"),
        ("X= # comment", ""),
        (r"X=a\tb", r"a\tb"),
        (r"X=C:\new\table", r"C:\new\table"),
        ("X=it's", "it's"),
        ('X=say "hi"', 'say "hi"'),
        ("X=$HOST_VAR/x", "host/x"),
        ("X=${HOST_VAR}x", "hostx"),
        ("X=$$HOST_VAR", "$HOST_VAR"),
        ("X=$UNSET_VAR.", "."),
        ("X=${UNSET_VAR:-d}", "d"),
        ("X=${UNSET_VAR:-${HOST_VAR}!}", "host!"),
        ("X=${EMPTY_VAR:-d}", "d"),
        ("X=${EMPTY_VAR-d}", ""),
        ("X=${HOST_VAR:?no}", "host"),
        ("X=${HOST_VAR:+yes}", "yes"),
        ("X=${EMPTY_VAR:+yes}", ""),
        ("X=${EMPTY_VAR+yes}", "yes"),
        ("X=${UNSET_VAR+yes}", ""),
        ('X=${UNSET_VAR:-{"a": {"b": 1}}}', '{"a": {"b": 1}}'),
        ("X=cost 5$ or $1", "cost 5$ or $1"),
        # Single quotes.
        ("X='bar'", "bar"),
        ("X=''", ""),
        ("X='pa${ss}word$HOST_VAR$$'", "pa${ss}word$HOST_VAR$$"),
        (r"X='a\nb\\c'", r"a\nb\\c"),
        (r"X='it\'s'", "it's"),
        ("X='a#b' # comment", "a#b"),
        ("X='a\n b\n'", "a\n b\n"),
        ("X='\"d\"'", '"d"'),
        # Double quotes.
        ('X="bar"', "bar"),
        ('X="a # b" # comment', "a # b"),
        ('X="a#b"#', "a#b"),
        (r'X="escaped\"bar"', 'escaped"bar'),
        (r'X="a\nb\tc\\d"', "a\nb\tc\\d"),
        (r'X="Z\aZ\bZ\fZ\nZ\rZ\tZ\vZ\\Z\0123Z"', "Z\aZ\bZ\fZ\nZ\rZ\tZ\vZ\\ZSZ"),
        (r'X="bar\\\n\ b"', "bar\\\n\\ b"),
        (r'X="\x07\u12e4"', r"\x07\u12e4"),
        ('X="first\nsecond"', "first\nsecond"),
        ('X="$HOST_VAR ${HOST_VAR}"', "host host"),
        (r'X="foo\$HOST_VAR \${HOST_VAR} $$"', "foo$HOST_VAR ${HOST_VAR} $"),
        ('X="it\'s"', "it's"),
        # export.
        ("export X=2", "2"),
        ("  export\tX=2", "2"),
        ("export X='export A'", "export A"),
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nY=1\n"])
def test_a_value_is_read_as_compose_reads_it(line: str, value: str, end: str) -> None:
    expected = {"X": value, "Y": "1"} if "Y" in end else {"X": value}
    assert read(line + end) == expected


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("exportFOO=2\nexport.FOO= 3", {"exportFOO": "2", "export.FOO": "3"}),
        ("a.b-c[0]=1\nÜber=2", {"a.b-c[0]": "1", "Über": "2"}),
        ("# no\n\n \t # no\nX=1\n#Y=2", {"X": "1"}),
        ("X=1\nX=2", {"X": "2"}),
        ("X=1\nY=$X$X", {"X": "1", "Y": "11"}),
        # The environment comes first in a reference; the line itself still says what the variable is.
        ("A=of the file\nY=$A", {"A": "of the file", "Y": "of the host"}),
        ("HOST_VAR\nUNSET_VAR\nexport EMPTY_VAR", {"HOST_VAR": "host", "EMPTY_VAR": ""}),
        ("X='a\r\nb'\r\nY=\"c\"\r\n", {"X": "a\nb", "Y": "c"}),
    ],
)
def test_a_file_of_several_lines(text: str, values: dict[str, str]) -> None:
    assert read(text) == values


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str) -> None:
    assert read("X=ü\r\nY=2\r\n".encode(encoding)) == {"X": "ü", "Y": "2"}


def test_problems_are_at_their_line_and_column_and_reading_goes_on() -> None:
    found = refuse('A=\'open\nB=2\n  lol$wut\nC=${X\nD="x"y\nE=${MUST:?say it}\n=5\nF="a\\0000b"\n')
    assert [(line, column) for line, column, _ in found] == [(1, 3), (3, 3), (4, 3), (5, 6), (6, 3), (7, 1), (8, 3)]
    said = [message for _, _, message in found]
    assert said[0] == "A: the quote ' is not closed"
    assert said[3] == "D: there is more behind the closing quote"
    assert said[4] == "E: the variable MUST must be set: say it"


def test_text_that_is_not_text() -> None:
    assert refuse("A=1\0") == [(1, 3 + 1, "this is not UTF-8 text: it has NUL characters")]


@given(st.binary())
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    findings = Findings()
    read_env_text(content, FILE, {}, findings)


@given(st.text(st.sampled_from("ab'\"\\$ {}:-?#=\n\t\0ü")))
def test_any_text_is_read_or_refused(text: str) -> None:
    read_env_text(text.encode(), FILE, {}, Findings())


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_what_devloop_env_prints_is_read_back(value: str) -> None:
    assert read(f"X={_dotenv(value)}\nY=1\n", {}) == {"X": value, "Y": "1"}


def test_lines_that_double_each_other_end() -> None:
    lines = ["A0=0123456789abcdef", *(f"A{n}=${{A{n - 1}}}${{A{n - 1}}}" for n in range(1, 40))]
    problems = refuse("\n".join(lines))
    assert problems[0] == (14, 5, "A13: more than 128 KiB, which no program can be given")
    assert read("X=$ODD", {"ODD": "\udcff"}) == {"X": "\udcff"}  # a byte that is not UTF-8 (PEP 383)


def test_places_are_counted_for_problems_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting the lines before each line makes a long file quadratic."""
    monkeypatch.setattr(envfile, "Spot", lambda *_: pytest.fail("a place was counted"))
    assert len(read("".join(f"N{n}=x\n" for n in range(100)))) == 100


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(OSError, match="a device, and no file"):
        envfile.read_env_file(Path("/dev/zero"), {}, Findings())

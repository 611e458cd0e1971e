"""Durations, and which commands need a shell."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from devloop.config import values
from devloop.config.model import MS, SECOND
from devloop.config.shell import with_exec


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1ms", MS),
        ("250ms", 250 * MS),
        ("1.5s", 1500 * MS),
        (".5s", 500 * MS),
        ("1.s", SECOND),
        ("1m30s", 90 * SECOND),
        ("1h0m0.001s", 3600 * SECOND + MS),
        ("1500us", 1500_000),
        ("1500µs", 1500_000),
        ("1000000ns", MS),
        ("0.1s", 100 * MS),  # no binary fraction
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert values.duration(text, 0) == nanoseconds


@pytest.mark.parametrize("text", ["", "s", "1", "1 s", "1S", "1d", "1w", "1mm", "1y", "1.2.3s", "1s ", "1s\n", "+1s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(PydanticCustomError):
        values.duration(text, 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1B", 1), ("1.5kB", 1500), ("200MB", 200_000_000), ("1GiB", 2**30), ("2mb", 2_000_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert values.size(text) == size


@pytest.mark.parametrize("value", ["", "1", "MB", "1 MB", "-1MB", "1iB", "1XB", "1MB\n", 5, 1.5, True, None])
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(PydanticCustomError):
        values.size(value)


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("python api.py", ("python", "api.py")),
        ("  make   -j 4\n", ("make", "-j", "4")),
        ("python -c 'print(1); x = $y'", ("python", "-c", "print(1); x = $y")),
        ('python -c "print(1, [2], {3: 4}) # *"', ("python", "-c", "print(1, [2], {3: 4}) # *")),
        ("a\\ b c", ("a b", "c")),
        ("a \\; b \\$x", ("a", ";", "b", "$x")),
        ("run --x=1 a=b", ("run", "--x=1", "a=b")),
        ("x a#b a~b c!", ("x", "a#b", "a~b", "c!")),
        ("cdx y", ("cdx", "y")),
    ],
)
def test_a_plain_command_is_run_without_a_shell(line: str, argv: tuple[str, ...]) -> None:
    assert values.command_line(line).argv == argv


@pytest.mark.parametrize(
    "line",
    [
        "a | b", "a && b", "a; b", "a &", "a > b", "a 2>&1", "a < b", "(a)", "a $X", 'a "$X"', "a `b`",
        'a "`b`"', "a *.py", "a b?", "a [xy]", "a {b,c}", "a ~/x", "~/bin/a", "a # b", "X=1",
        "X+=1 a", "X=~ a", "X=1 cd y", "cd x", "exec a", "export X", ". ./env", "source x", "ulimit -n 10", "! a",
        "if a", "a\nb", "a \\\nb", 'a\'"\'$X',
    ],
)  # fmt: skip
def test_a_command_for_the_shell_goes_there_as_it_is(line: str) -> None:
    assert values.command_line(line).argv == ("/bin/sh", "-c", with_exec(line))


@given(st.lists(st.text("ab '\"\\$|&;<>()*?[]{}~#=!-\t", min_size=1), min_size=1, max_size=4))
def test_quoted_words_come_back(words: list[str]) -> None:
    line = shlex.join(words)
    assume(not re.match(r"\w+=", line))  # sets a variable for the words after it
    argv = values.command_line(line).argv
    assert argv == tuple(words) or argv == ("/bin/sh", "-c", with_exec(line))


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "printf %s\\\\n a\\ b 'c d' \"e f\"",
        'printf %s\\\\n "a\\"b" \'c\\d\'',
        "printf '%s\n' a#b a~b c=d x:y,z %@ ^ +",
    ],
)
def test_words_are_what_a_shell_makes_of_them(line: str) -> None:
    ours = values.command_line(line).argv
    assert ours[0] == "printf"
    shell = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True)
    assert subprocess.run(ours, capture_output=True, check=True).stdout == shell.stdout


def test_an_array_is_never_looked_at_by_a_shell() -> None:
    command = values.command_words(("echo", "$X", "a b"))
    assert (command.argv, command.text) == (("echo", "$X", "a b"), "echo '$X' 'a b'")


def test_all_signals_exist() -> None:
    assert all(values.signal_number(name) == values.signal_number(f"SIG{name}") for name in values.SIGNALS)

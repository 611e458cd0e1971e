"""`devloop env` for other programs: a name can't become a command of theirs."""

from __future__ import annotations

import subprocess

import pytest

from devloop.commands.world import _environment_text
from devloop.protocol import Variable

NAMES = ("GOOD_1", "x;touch pwned", "$(touch pwned)", "a b", "", "two\nLD_PRELOAD", "1st", "with.dot", "#note")


@pytest.mark.parametrize(
    ("form", "left"),
    [("shell", ["GOOD_1"]), ("dotenv", ["GOOD_1", "1st", "with.dot"]),
     ("docker", ["GOOD_1", "x;touch", "1st", "with.dot"])],
)  # fmt: skip
def test_a_name_that_the_format_does_not_have_is_left_out_and_told(
    form: str, left: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [*NAMES, "x;touch"]
    lines = _environment_text([Variable(each, "1", "its workload") for each in names], form, reveal=True).splitlines()
    assert sorted(line.removeprefix("export ").partition("=")[0] for line in lines) == sorted(left)
    told = capsys.readouterr().err
    assert all(repr(each) in told for each in names if each not in left) and "GOOD_1" not in told


def test_a_shell_that_evaluates_it_runs_nothing() -> None:
    text = _environment_text([Variable(each, "$(echo pwned)", "") for each in NAMES], "shell", reveal=True)
    ran = subprocess.run(["sh", "-ec", f'{text}\necho "$GOOD_1"'], capture_output=True, text=True, timeout=30)
    assert (ran.stdout, ran.stderr) == ("$(echo pwned)\n", "")

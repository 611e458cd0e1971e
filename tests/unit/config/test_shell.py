"""How little of a shell a line takes, and that it means the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from devloop.config import shell
from devloop.config.values import command_line
from tests.unit.config.folder import Folder


@pytest.mark.parametrize(
    ("line", "words", "folder", "env"),
    [
        ("X=1 a b", ("a", "b"), "", {"X": "1"}),
        ("X= Y='a b' Z=\"c d\"e a", ("a",), "", {"X": "", "Y": "a b", "Z": "c de"}),
        ("X=a=b a", ("a",), "", {"X": "a=b"}),
        ("cd x && ./run --fast", ("./run", "--fast"), "x", {}),
        ("cd ../x/y && a", ("a",), "../x/y", {}),
        ("cd 'a b' && X=1 a", ("a",), "a b", {"X": "1"}),
        ("cd a && cd b && c", ("c",), "a/b", {}),
        ("cd a && cd /b && c", ("c",), "/b", {}),
        ("  cd  a  &&  c  ", ("c",), "a", {}),
    ],
)
def test_folders_and_variables_take_no_shell(
    line: str, words: tuple[str, ...], folder: str, env: dict[str, str]
) -> None:
    command = command_line(line)
    assert (command.argv, command.folder, command.env) == (words, folder, env)


@pytest.mark.parametrize(
    "line",
    [
        "cd - && a",
        "cd && a",
        "cd -P x && a",
        "cd ~ && a",
        "cd $X && a",
        "cd x; a",
        "cd x || a",
        "cd x & a",
        "cd x && a | b",
        "cd x && a && b",
        "cd a/../b && c",
        "cd a && cd .. && b",
        "cd x y && a",
        "cd x &&",
        "X=1",
        "X=$Y a",
        "X=`y` a",
        "X=~/y a",
        "X=a:~/y a",
        "X+=1 a",
        "X=1 cd y",
        "X=1 exec a",
        "X=1 a > b",
        "X=* a",
        "X=1 source a",
        'X=1 sh -c "echo \\$X"',
        'X="\\`" a',
        'cd x && a "\\$"',
        "cd x && X=1",
        "cd x && exec y",
    ],
)
def test_what_is_more_than_that_is_the_shells(line: str) -> None:
    command = command_line(line)
    assert command.argv[:2] == shell.SH
    assert (command.folder, command.env) == ("", {})


@pytest.mark.parametrize(
    ("line", "with_exec"),
    [
        ("a $X", "exec a $X"),
        ("cd x; a", "cd x; exec a"),
        ("cd x && ./a > log 2>&1", "cd x && exec ./a > log 2>&1"),
        ("export X=$(a b); ./run --port ${PORT}", "export X=$(a b); exec ./run --port ${PORT}"),
        ("X=1 Y=$Z a", "X=1 Y=$Z exec a"),
        ("X=$(date +%s) a", "X=$(date +%s) exec a"),
        ("set -e\nmake\n./run", "set -e\nmake\nexec ./run"),
        ("a || b", "a || exec b"),
        ("a && b || c", "a && b || exec c"),
        ("a 'b; c' \"d && $E\"", "exec a 'b; c' \"d && $E\""),
        ("make;", "exec make;"),
        ("ulimit -n 100 && a", "ulimit -n 100 && exec a"),
        ("python *.py", "exec python *.py"),
    ],
)
def test_the_last_program_takes_the_shells_place(line: str, with_exec: str) -> None:
    assert shell.with_exec(line) == with_exec


@pytest.mark.parametrize(
    "line",
    [
        "a | b",
        "a & b",
        "a & wait",
        "(a; b)",
        "{ a; b; }",
        "if a; then b; fi",
        "while a; do b; done",
        "for x in a; do b; done",
        "trap 'x' EXIT; a",
        "source env && a",
        ". ./env; a",
        "eval x; a",
        "alias a=b; a",
        "f() { a; }; f",
        "! a",
        "a # b",
        "a <<E\nb\nE",
        "a; b &",
        "exec a",
        "a; echo $X",
        "a; cd b",
        "a; X=1",
        "$A b",
        '"$A" b',
        "a `b` c",
        "a &&",
        "&& a",
        "a; ; b",
        "a 'b",
        "a $(b",
        "case x in y) z;; esac",
        "time a $X",
        "command a $X",
        "a $(b # c\n)",
    ],
)
def test_what_may_mean_something_else_is_left_alone(line: str) -> None:
    assert shell.with_exec(line) == line


PRINT = 'echo "$0 $# $X $Y $PWD"; for i; do echo "<$i>"; done; exit 3'


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dash", "bash"])
@pytest.mark.parametrize(
    "line",
    [
        "X=1 ./p a 'b c'",
        "X='a  b' Y=\\$x ./p",
        'X="a\\"b" ./p',
        "cd sub && ../p x",
        "cd sub && Y=2 ../p x",
        "cd ./sub && ../p",
        "cd sub && cd deep && ../../p",
        "cd nowhere && ./p",
        "X=1; ./p $X",
        "export X=$(./p | head -1); ./p",
        "X=$(echo 5) ./p",
        "false || ./p a",
        "true && ./p b; ./p c",
        "false && ./p a",
        "set -e; false; ./p",
        "cd sub; X=$Y ../p '$X' \"$X\"",
        "./p *.txt",
        "./p ${HOME:+home}",
        "./p a > out; cat out",
        "X=1 Y=2; ./p",
        "./p $((1 + 2)) b",
        "nothere $X",
        "umask 077 && ./p",
        "./p\n./p $X\n",
        "X=a=b ./p",
        'X="1 2" sh -c "echo \\$X"',
        'cd sub && X=1 sh -c "echo \\$X \'a \\`echo b\\`\' \\"c\\" \\\\d"',
        './p "\\$X" "a\\\\b" "a\\b" \\$Y',
    ],
)
def test_the_shell_would_do_the_same(tmp_path: Path, name: str, line: str) -> None:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    (tmp_path / "sub/deep").mkdir(parents=True)
    (tmp_path / "a.txt").touch()
    (tmp_path / "p").write_text(f"#!/bin/sh\n{PRINT}\n")
    (tmp_path / "p").chmod(0o755)
    root = os.path.realpath(tmp_path)
    environ = {"PATH": os.environ["PATH"], "HOME": "/root", "PWD": root, "Y": "y"}

    def run(argv: list[str], folder: str = "", **more: str) -> tuple[int, str]:
        cwd = Path(root) / folder
        if not cwd.is_dir():
            return 1, ""
        result = subprocess.run(argv, cwd=cwd, env=environ | more, capture_output=True, text=True, check=False)
        return result.returncode, result.stdout

    theirs = run([found, "-c", line])
    command = command_line(line, (found, "-c"))
    more = {"PWD": f"{root}/{command.folder}"} if command.folder else {}
    ours = run(list(command.argv), command.folder, **command.env, **more)
    if "nowhere" in line:
        assert ours[0] and theirs[0]
    else:
        assert (ours[0], ours[1].replace("/./", "/")) == theirs


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("source env.sh && a", "source"),
        ("[[ -f x ]] && a", "[["),
        ("a; pushd b", "pushd"),
        ("x=(a b); c", "x=("),
        ("diff <(a) b", "<("),
        ("cat <<< x", "<<<"),
        ("a &> log", "&>"),
        ("echo 'source x' && a", ""),
        ('a "[[ x" $B', ""),
        ("mysource a $B", ""),
        ("a --source b $C", ""),
        ("a >&2 | b", ""),
        (". ./env && a", ""),
    ],
)
def test_what_is_bashs_is_named(line: str, found: str) -> None:
    assert shell.of_bash(line) == found


def test_sh_that_is_bash_understands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, expected in (("/bin/dash", True), ("/bin/bash", False), ("/bin/busybox", True)):
        monkeypatch.setattr(Path, "resolve", lambda _, to=target: Path(to))
        assert bool(shell.complaint(command_line("source x && y").argv, "source x && y")) is expected
    assert shell.complaint(("bash", "-c", "source x"), "source x") == ""


class TestSetting:
    def test_the_nearest_wins(self, folder: Folder) -> None:
        text = """
        [project]
        shell = "bash"
        [defaults]
        shell = ["sh", "-e", "-c"]
        [services.a]
        command = "x | y"
        [services.b]
        command = "x | y"
        shell = "sh"
        build = "make | tee log"
        reload = "exec: x | y"
        ready = { exec = "x | y" }
        [services.c]
        command = "x y"
        [services.d]
        command = ["x", "|", "y"]
        """
        services = folder.load(text).services
        assert services["a"].command.argv == ("sh", "-e", "-c", "x | y")
        b = services["b"]
        assert b.command.argv == ("sh", "-c", "x | y")
        assert b.build is not None and b.build.argv == ("sh", "-c", "make | tee log")
        assert b.reload.command is not None and b.reload.command.argv == ("sh", "-c", "x | y")
        assert b.ready is not None and "('sh', '-c', 'x | y')" in str(b.ready.check)
        assert services["c"].command.argv == ("x", "y")
        assert services["d"].command.argv == ("x", "|", "y")

    def test_the_project_has_one(self, folder: Folder) -> None:
        text = '[project]\nshell = "/bin/sh"\n[services.a]\ncommand = "x | y"\n'
        assert folder.load(text).services["a"].command.argv == ("/bin/sh", "-c", "x | y")

    def test_one_that_is_no_posix_shell_gets_every_line(self, folder: Folder) -> None:
        (folder.root / "fish").write_text("#!/bin/sh\n")
        (folder.root / "fish").chmod(0o755)
        text = f'[services.a]\ncommand = "x (y)"\nbuild = "x y"\nshell = ["{folder.root}/fish", "-c"]\n'
        service = folder.load(text).services["a"]
        assert service.build is not None
        assert service.build.argv == (f"{folder.root}/fish", "-c", "x y")

    def test_one_that_is_not_installed_is_a_problem_where_it_is_needed(self, folder: Folder) -> None:
        used = '[project]\nshell = §"no-such-shell"\n[services.a]\ncommand = "x | y"\n'
        (problem,) = folder.refuse(used)
        assert 'project.shell: there is no "no-such-shell" on this machine' in problem
        assert "services.a.command needs a shell" in problem
        folder.load('[project]\nshell = "no-such-shell"\n[services.a]\ncommand = ["x"]\n')

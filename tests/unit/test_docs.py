"""Every example of README and docs does what it says: its TOML passes `check`, its command lines are understood.

A block may be a fragment: services without a command get one, and a file without services gets one. What shows a
mistake is marked "```toml error".
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from devloop import cli
from devloop.arguments import UNLISTED, parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")


def blocks(*labels: str) -> Iterator[tuple[str, str]]:
    """(page:line, text) of each code block with one of these labels."""
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            if found[2].strip() in labels:
                yield f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}", found[3]


def framed(text: str) -> str:
    """The text, with a command for each of its services that has none."""
    services = tomllib.loads(text).get("services", {})
    bare = [name for name, table in services.items() if "command" not in table]
    dotted = "".join(f"services.{name}.command = 'true'\n" for name in bare)
    if bare and all(f"[services.{name}]" not in text for name in bare):
        return dotted + text  # before the first table: a table that comes later may add to it
    for name in bare:
        text = text.replace(f"[services.{name}]\n", f"[services.{name}]\ncommand = 'true'\n", 1)
    includes = "include" in tomllib.loads(text)
    return text if services or includes else f"{text}\n[services.api]\ncommand = 'true'\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what the examples refer to."""
    files = {
        "p/services/a.toml": "[services.a]\ncommand = 'a'",
        "shared/store.toml": "[services.b]\ncommand = 'b'",
        "p/k8s/web.yaml": "",
        "p/.env": "",
        "p/api/.env": "",
        "p/web/.env": "",
        "p/ca.pem": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "p"


@pytest.mark.parametrize(("where", "text"), [pytest.param(*each, id=each[0]) for each in blocks("toml")])
def test_toml_passes_check(project: Path, where: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "devloop.toml").write_text(framed(text))
    code = cli.main(["-f", str(project / "devloop.toml"), "check"])
    assert code == 0, f"{where}: {capsys.readouterr().err}"


def test_toml_that_shows_a_mistake_has_one(project: Path) -> None:
    for where, text in blocks("toml error"):
        (project / "devloop.toml").write_text(text)
        assert cli.main(["-f", str(project / "devloop.toml"), "check"]) == 2, where


FILES = [ROOT / "devloop.toml", *sorted((ROOT / "examples").rglob("devloop*.toml"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_examples_pass_check(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-f", str(file), "check"]) == 0, capsys.readouterr().err


# Command lines


def commands() -> Iterator[tuple[str, str]]:
    """(page:line, command line) of each that begins with `devloop`, in a code block or in backticks."""
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            for line in found[3].splitlines():
                line = line.strip().removeprefix("$ ")
                word = [*line.split(), "", ""][1]
                if line.startswith("devloop ") and (found[2] or word in names()) and "──" not in line:
                    yield f"{page.relative_to(ROOT)}: {line}", line
        for line in BLOCK.sub("", text).splitlines():
            for cell in re.split(r"(?<!\\)\|", line):
                spans = [each.removeprefix("sudo ") for each in SPAN.findall(cell)]
                for each in spans:
                    if each.startswith("devloop "):
                        yield f"{page.relative_to(ROOT)}: {each}", each
                    elif line.startswith("| `devloop ") and cell == line.split("|")[1]:
                        # `devloop agent install`, `uninstall`: of the same command as the first.
                        above = " ".join(spans[0].split()[:-1])
                        known = each.split()[0] in names()
                        yield f"{page.relative_to(ROOT)}: {each}", f"{'devloop' if known else above} {each}"


def names() -> set[str]:
    """The commands."""
    return {name for action in cli.parser()._actions if action.metavar == "COMMAND" for name in action.choices or ()}


def words(line: str) -> list[str]:
    """The arguments of a command line, with each placeholder as a word, and the first of what may be chosen from."""
    line = re.split(r"\s(?:#|[|>]|&&)\s|;", line)[0].replace("…", "").replace("\\|", "|")
    line = re.sub(r"[\[\]]", "", line)
    line = re.sub(r"([\w-]+)(?:\|[\w-]+)+", r"\1", line)
    return shlex.split(line)[1:]


@pytest.mark.parametrize("line", [pytest.param(line, id=where) for where, line in dict(commands()).items()])
def test_a_command_line_is_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        parse(cli.parser(), words(line))
    except SystemExit as end:
        assert end.code in (0, None), f"{line}: {capsys.readouterr().err}"


def test_messages_name_commands_that_exist() -> None:
    sources = [*(ROOT / "devloop").rglob("*.py"), *(ROOT / "tui").rglob("*.py")]
    named = {word: source for source in sources for word in re.findall(r"`devloop ([a-z]+)", source.read_text())}
    unknown = {word: str(source) for word, source in named.items() if word not in names()}
    assert not unknown
    assert set(UNLISTED) <= names()

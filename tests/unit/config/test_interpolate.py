"""`${VAR}` in the file: the language, where variables come from, and what is said if one is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.config.interpolate import UnresolvedError, interpolate

from .folder import Folder

VARIABLES = {"A": "a", "EMPTY": "", "_x1": "under", "TRICKY": "${A} $$ }"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${A}", "a"),
        ("x${A}y${A}z", "xayaz"),
        ("${_x1}", "under"),
        ("${EMPTY}", ""),
        ("${NOPE:-default}", "default"),
        ("${NOPE:-}", ""),
        ("${A:-default}", "a"),
        ("${EMPTY:-default}", "default"),
        ("${NOPE:-${A}}", "a"),
        ("${NOPE:-${EMPTY:-${A}!}?}", "a!?"),
        ("${NOPE:-a b: c}", "a b: c"),
        ('${NOPE:-{"a": {}}}', '{"a": {}}'),
        ("${A:-${NOPE}}", "a"),  # a default that is not needed is not looked at
        ("$A", "$A"),
        ("$", "$"),
        ("a$", "a$"),
        ("$(A)", "$(A)"),
        ("$$", "$"),
        ("$$$$", "$$"),
        ("$${A}", "${A}"),
        ("$$${A}", "$a"),
        ("${NOPE:-$$}", "$"),
        ("${TRICKY}", "${A} $$ }"),  # a value is not interpolated again
        ("}{", "}{"),
    ],
)
def test_the_language(text: str, expected: str) -> None:
    assert interpolate(text, VARIABLES) == expected


@pytest.mark.parametrize(
    ("text", "what", "needle"),
    [
        ("x ${NOPE} y", "the variable NOPE is not set", "${NOPE"),
        ("${A} ${EMPTY:-${NOPE}}", "the variable NOPE is not set", "${NOPE"),
        ("${A", 'a "${" has no closing brace', "${A"),
        ("${NOPE:-${A}", 'a "${" has no closing brace', "${NOPE:-${A}"),
        ("${}", '"${}" is not a variable', "${"),
        ("${1}", '"${1}" is not a variable', "${1"),
        ("${A-b}", '"${A-b}" is not a variable', "${A-b"),
        ("${A:?b}", '"${A:?b}" is not a variable', "${A:?b"),
        ("${A B}", '"${A B}" is not a variable', "${A B"),
    ],
)
def test_what_can_not_be_resolved(text: str, what: str, needle: str) -> None:
    with pytest.raises(UnresolvedError) as caught:
        interpolate(text, VARIABLES)
    assert (caught.value.what, caught.value.needle) == (what, needle)
    assert caught.value.hint


@given(st.text())
def test_a_text_with_doubled_dollars_stays_itself(text: str) -> None:
    assert interpolate(text.replace("$", "$$"), {}) == text


@given(st.text(), st.text(min_size=1))
def test_a_value_is_taken_as_it_is(before: str, value: str) -> None:
    before = before.replace("$", "")
    assert interpolate(before + "${V}", {"V": value}) == before + value


def test_every_string_value_is_interpolated_and_no_key(folder: Folder) -> None:
    folder.environ |= {"DIR": "sub", "P": "8081", "X": "started", "NAME": "shop"}
    folder.write({"sub/e": "", "more.toml": '[services.y]\ncommand = "${NAME}"\n'})
    project = folder.load(
        """
        include = ["mo${NO:-re}.toml"]
        project.name = "${NAME}"
        [defaults]
        env = { "${DIR}" = "${DIR}" }
        [services.x]
        command = ["run", "${DIR}"]
        cwd = "${DIR}"
        env_file = ["${DIR}/e"]
        ports = { http = "${P}" }
        ready = { http = ":${P}/", period = "${T:-5ms}" }
        depends_on = { y = "${X}" }
        mode = "${MODE:-local}"
        """
    )
    service = project.services["x"]
    assert project.name == "shop"
    assert service.command.argv == ("run", "sub")
    assert service.cwd == folder.root / "sub"
    assert service.env == {"${DIR}": "sub"}
    assert service.ports == {"http": 8081}
    assert service.depends_on["y"] == "started"
    assert project.services["y"].command.text == "shop"


def test_the_shells_variables_are_left_alone(folder: Folder) -> None:
    assert folder.service(command='command = "echo $HOME $${HOME} $$$$"').command.argv == (
        "/bin/sh",
        "-c",
        "echo $HOME ${HOME} $$",
    )


def test_a_dollar_that_is_written_as_an_escape_counts(folder: Folder) -> None:
    folder.environ["A"] = "a"
    assert folder.service('env = { X = "\\u0024{A}" }').env == {"X": "a"}


def test_variables_come_from_dot_env_and_the_environment_wins(folder: Folder) -> None:
    folder.write({".env": "A=file\nB=file\nC=${A}\n"})
    folder.environ["B"] = "environ"
    service = folder.service('env = { A = "${A}", B = "${B}", C = "${C}" }')
    assert service.env == {"A": "file", "B": "environ", "C": "file"}
    project = folder.load('[services.x]\ncommand = "true"')
    assert project.files == (folder.root / "devloop.toml", folder.root / ".env")
    assert project.missing == ()


def test_the_env_file_of_a_service_is_not_for_interpolation(folder: Folder) -> None:
    folder.write({"e": "A=1"})
    assert folder.refuse_service('env_file = "e"\nenv = { B = "§${A}" }').startswith("services.x.env.B: ")


def test_each_variable_that_is_not_set_is_said_where_it_stands(folder: Folder) -> None:
    folder.environ["STORE_URL"] = "x"
    messages = folder.refuse(
        '''
[services.x]
command = "true"
cwd = "é${A:-.}§${NOPE}"
env = { A = "$${STORE_URLS} §${STORE_URLS}", B = """
  multi
  §${NOPE2}""" }
watch = [".", "§${NOPE3", "§${NOPE-4}"]
'''
    )
    assert messages[0].startswith("services.x.cwd: the variable NOPE is not set | set it in the environment")
    assert "did you mean STORE_URL?" in messages[1]
    assert messages[3].startswith('services.x.watch[1]: a "${" has no closing brace')
    assert messages[4].startswith('services.x.watch[2]: "${NOPE-4}" is not a variable')

"""What a bad file is told: where, what was expected, and what to do."""

from __future__ import annotations

import tempfile
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devloop.config.load import load
from devloop.config.problems import ConfigProblems, Problem
from devloop.config.schema import File, ReadyProbe, RestartTable, Service

from .corpus import Case, cases, toml
from .folder import Folder

WRONG_KEYS, WRONG_ELSEWHERE = cases()


@pytest.mark.parametrize("case", WRONG_KEYS, ids=str)
def test_a_wrong_key_is_said_at_its_place(folder: Folder, case: Case) -> None:
    folder.write({"e": "", "d/in-d": ""})
    said, _, hint = folder.refuse_service(case.text).partition(" | ")
    assert said.startswith(case.message)
    assert case.hint in hint


@pytest.mark.parametrize("case", WRONG_ELSEWHERE, ids=str)
def test_a_wrong_key_outside_the_services(folder: Folder, case: Case) -> None:
    # Two services, so that a default that is looked at for each is told once.
    services = '\n[services.a]\ncommand = "true"\n[services.b]\ncommand = "true"\n'
    (message,) = folder.refuse(case.text + services)
    said, _, hint = message.partition(" | ")
    assert said.startswith(case.message)
    assert case.hint in hint


def test_services_that_are_no_tables(folder: Folder) -> None:
    assert folder.refuse("services = §3") == ["services: expected tables such as [services.web], not the number 3 | "]
    assert folder.refuse('[services]\nweb = §"python web.py"') == [
        'services.web: expected a table, not "python web.py" | '
    ]
    assert folder.refuse("§[services]")[0].startswith("the project has no services | add one")
    assert folder.refuse("§")[0].startswith("the project has no services")
    assert folder.refuse("[services.§web]") == ['services.web: has no command | add command = "…": what it runs']
    assert folder.refuse('[services]\n§web.cwd = "."')[0].startswith("services.web: has no command")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My_API", '"my-api" would do'),
        ("-", ""),
        ('"a b"', '"a-b" would do'),
        ('"é"', ""),
        ('"a\\n"', '"a" would do'),
    ],
)
def test_service_names_are_dns_labels(folder: Folder, name: str, hint: str) -> None:
    (said,) = folder.refuse(f'[services.§{name}]\ncommand = "true"')
    assert said.startswith("service names are made of a-z, 0-9 and - ")
    assert hint in said
    (said,) = folder.refuse(f'[services.§{"a" * 64}]\ncommand = "true"')
    folder.load(f'[services.{"a" * 63}]\ncommand = "true"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = §", "not TOML: invalid value"),
        ("[services.x]\n§[services", "not TOML: "),
        ('"é" = "é" §x', "not TOML: expected newline or end of document after a statement"),
        ("[a]\nx = 1\n§x = 2", "not TOML: cannot overwrite a value"),
        ('x = """\nabc\n§', "not TOML: unterminated string"),
    ],
)
def test_a_syntax_error_has_its_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "devloop.toml"
    file.write_text(text.replace("§", ""))
    with pytest.raises(ConfigProblems) as caught:
        load(file, {})
    (problem,) = caught.value.problems
    assert problem.message.startswith(message)
    before = text.partition("§")[0]
    assert problem.line == before.count("\n") + 1


def test_syntax_columns_count_characters(folder: Folder) -> None:
    assert folder.refuse('"é" = "é" §x')[0].startswith("not TOML: ")


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "devloop.toml").write_bytes(b'a = "\xc3\xa9"\nb = "\xc3\xa9\xff"')
    with pytest.raises(ConfigProblems) as caught:
        load(tmp_path / "devloop.toml", {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.message) == (2, 7, "this is not UTF-8 text")


def test_everything_is_said_at_once_in_the_order_of_the_file(folder: Folder) -> None:
    messages = folder.refuse(
        """
[defaults]
debounce = §5
[services.api]
§comand = "x"
command = "x"
cwd = §"nope"
env = { A = "§${NOPE}" }
depends_on = [§"stroe", §"task"]
ports = { http = 1 }
ready = { http = §"h", period = §1, §nope = 3 }
[services.store]
command = "x"
ports = §1
depends_on = { §web = §"redy", api = §"completed", §apu = "ready" }
[services.§Task]
command = "x"
[services.task]
command = "x"
task = true
restart = §"always"
"""
    )
    assert len(messages) == 16
    assert [m.partition(":")[0] for m in messages[:4]] == [
        "defaults.debounce",
        'unknown key "comand" in services.api | there is a "command" already',
        "services.api.cwd",
        "services.api.env.A",
    ]


def test_a_broken_value_does_not_cause_a_second_problem(folder: Folder) -> None:
    folder.refuse_service('ports = { http = §0 }\nready = { tcp = "http" }\nlive = { http = "/" }')
    folder.refuse_service('ports = { http = "§${NOPE}" }\nready = { tcp = "http" }')
    folder.refuse_service('cwd = "§${NOPE}/x"')
    folder.refuse_service('ready = { log = §"(" }')
    folder.refuse_service('depends_on = "§${NOPE}"')
    folder.refuse_service('restart = { delay = "§${NOPE}", max_delay = "1ms" }')
    (said,) = folder.refuse('[services.x]\ncommand = §3\n[services.y]\ncommand = "y"\ndepends_on = { x = "completed" }')
    assert said.startswith("services.x.command")


def test_positions_in_all_ways_to_write_a_key(folder: Folder) -> None:
    folder.refuse(
        """
services.a.command = "true"
services.a."ready".tcp = §"nope"
services.a.env = { "é" = "é", §"x=y" = 1 }

[services."b"]
command = "true"
ready.log = §'''
('''
stop.signal = §"X"

[services.c]
command = "true"
[services.c.restart]
policy = §"nope"
[services.c.depends_on]
b = "started"
§nope = "started"
[ services . d ]
command = [
  "a", # comment
  §1,
]
"""
    )


def test_how_problems_print(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[services.x]\ncommand = "true"\nmode = "locl"\ntask = 3\n'
    with pytest.raises(ConfigProblems) as caught:
        folder.load(text)
    monkeypatch.chdir(folder.root)
    assert str(caught.value) == (
        'devloop.toml:3:8: services.x.mode: expected "local", "remote" or "off", not "locl"\n'
        '  did you mean "local"?\n'
        "devloop.toml:4:8: services.x.task: expected true or false, not the number 3"
    )
    monkeypatch.chdir("/")
    assert str(caught.value).startswith(f"{folder.root}/devloop.toml:3:8: ".removeprefix("/"))
    assert caught.value.exit_code == 2
    assert caught.value.what == "devloop.toml has 2 problems"
    first = caught.value.problems[0]
    assert first == Problem(folder.root / "devloop.toml", 3, 8, first.message, 'did you mean "local"?')


def test_a_long_value_is_cut_in_the_message(folder: Folder) -> None:
    said = folder.refuse_service(f'mode = §"{"x" * 500}"')
    assert len(said) < 200


def test_an_env_file_that_can_not_be_read_is_a_problem_of_its_own(folder: Folder) -> None:
    folder.write({"e": "A=1\n\n\nB='open\nC=2\n", "f": "x", ".env": "oops'='\n="})
    (folder.root / "f").write_bytes(b"A=1\nB=\xff\n")
    with pytest.raises(ConfigProblems) as caught:
        folder.service('env_file = ["e", "f"]')
    found = [(p.file.name, p.line, p.message) for p in caught.value.problems]
    assert ("e", 4, "B: the quote ' is not closed") in found
    assert ("f", 2, "this is not UTF-8 text") in found
    assert any(name == ".env" for name, _, _ in found)


def test_the_files_that_a_broken_project_depends_on(folder: Folder) -> None:
    folder.write({"b.toml": "oops", "e": ""})
    with pytest.raises(ConfigProblems) as caught:
        folder.load('include = "b.toml"\n[services.a]\ncommand = "a"\nenv_file = ["e", "nope", "opt?"]\n')
    names = ["devloop.toml", "b.toml", "e", ".env", "nope", "opt"]
    assert caught.value.files == tuple(folder.root / name for name in names)


KEYS = (
    *File.model_fields,
    *Service.model_fields,
    *ReadyProbe.model_fields,
    *RestartTable.model_fields,
    "x",
    "y",
)
VALUES = st.recursive(
    st.sampled_from(
        [
            "",
            "x",
            "y",
            "a b",
            "${X}",
            "${",
            "1s",
            "-1",
            "TERM",
            "/h",
            ":1/x",
            "h:1",
            "http://[",
            "(",
            "*",
            "local",
            "ready",
        ]
    )
    | st.sampled_from([-1, 0, 1, 80, 99999, 2**70, 1.5, float("nan"), True, False, date(2020, 1, 1)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    st.dictionaries(
        st.sampled_from("xy"), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6) | VALUES, max_size=2
    ),
)
def test_no_file_is_too_wrong(top: dict[str, object], defaults: dict[str, object], services: dict[str, object]) -> None:
    """Whatever a file holds, it loads or its problems are told, each at a place that exists."""
    document = {**top, "defaults": defaults, "services": services}
    text = "\n".join(f"{key} = {toml(value)}" for key, value in document.items())
    lines = text.split("\n")
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "devloop.toml")
        file.write_text(text)
        try:
            load(file, {})
        except ConfigProblems as error:
            for problem in error.problems:
                assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1
                assert problem.message
                assert "\n" not in problem.message

"""The JSON schema says what `load` does, as far as a schema can."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devloop.config import label, values
from devloop.config.json_schema import json_schema
from devloop.config.load import load
from devloop.config.problems import ConfigProblems
from devloop.config.schema import Defaults, File, Service

from .corpus import Case, cases, toml
from .folder import Folder

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
WRONG_KEYS, WRONG_ELSEWHERE = cases()


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "null" not in repr(SCHEMA)


def test_every_key_has_a_title_and_a_description() -> None:
    tables = {"": SCHEMA, **SCHEMA["$defs"]}
    for table, schema in tables.items():
        for key, value in schema["properties"].items():
            assert value.get("title"), (table, key)
            assert value.get("description", "").endswith("."), (table, key)


def test_it_has_every_key() -> None:
    assert SCHEMA["properties"].keys() == set(File.model_fields)
    assert SCHEMA["$defs"]["Service"]["properties"].keys() == set(Service.model_fields)
    assert SCHEMA["$defs"]["Defaults"]["properties"].keys() == set(Defaults.model_fields)


@pytest.mark.parametrize("case", WRONG_KEYS, ids=str)
def test_what_load_refuses_in_a_service_the_schema_refuses(case: Case) -> None:
    document = tomllib.loads(f'[services.x]\ncommand = "true"\n{case.text}'.replace("§", ""))
    assert VALIDATOR.is_valid(document) == case.load_only


@pytest.mark.parametrize("case", WRONG_ELSEWHERE, ids=str)
def test_what_load_refuses_elsewhere_the_schema_refuses(case: Case) -> None:
    document = tomllib.loads(f'{case.text}\n[services.x]\ncommand = "true"'.replace("§", ""))
    assert VALIDATOR.is_valid(document) == case.load_only


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[services]\nweb = 3",
        "[services.web]",
        '[services.Web]\ncommand = "x"',
        "services = 3",
        '[services.x]\ncommand = ""',
    ],
)
def test_more_wrong_files(folder: Folder, text: str) -> None:
    assert not VALIDATOR.is_valid(tomllib.loads(text))
    with pytest.raises(ConfigProblems):
        folder.load(text)


@pytest.mark.parametrize(
    "keys",
    [
        'mode = "${M:-local}"',
        'restart = "${M:-never}"',
        'restart = { policy = "${M:-never}", delay = "${M:-1s}" }',
        'ports = "${M:-80}"',
        'ports = ["${M:-80}", 81]',
        'ports = { http = "${M:-80}" }',
        'stop = "${M:-INT}"',
        'reload = "${M:-manual}"',
        'groups = "${M:-g}"',
        'ready = { http = "${M:-:80/}" }',
        'depends_on = "${M:-y}"',
        'depends_on = { y = "${M:-started}" }',
    ],
)
def test_a_variable_may_stand_wherever_a_string_does(folder: Folder, keys: str) -> None:
    text = f'[services.x]\ncommand = "true"\n{keys}\n[services.y]\ncommand = "true"\n'
    folder.load(text)
    VALIDATOR.validate(tomllib.loads(text))


# Files that are valid in every way: what is drawn here, `load` takes, and so does the schema.

_words = st.text("abc /.:=-é", min_size=1, max_size=8).filter(lambda s: s.strip())
_labels = st.from_regex(label.PATTERN, fullmatch=True).filter(lambda s: len(s) < 12)
_ports = st.integers(1, 65535)
_durations = st.builds("{}{}".format, st.integers(1, 500), st.sampled_from(["ms", "s", "m", "h"]))
_signals = st.sampled_from(values.SIGNALS) | st.sampled_from(values.SIGNALS).map("SIG{}".format)
_policies = st.sampled_from(["never", "on-failure", "always"])
_commands = _words | st.lists(_words, min_size=1, max_size=3)
_texts = _words | st.lists(_words, max_size=3)
_timings: dict[str, st.SearchStrategy[Any]] = {
    "period": _durations,
    "timeout": _durations,
    "grace": _durations | st.just("0s"),
    "failures": st.integers(1, 9),
}


def _table(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


def _with(check: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(check, optional=_timings)


_paths = _words.map("/{}".format)
_live = st.one_of(
    st.just(False),
    _with({"http": _ports.map(":{}".format) | _ports.map("http://localhost:{}/x".format)}),
    _with({"http": _paths, "port": _ports}),
    _with({"tcp": _ports | _ports.map(str) | _ports.map("host:{}".format)}),
    _with({"exec": _commands}),
)
_common = {
    "env": st.dictionaries(
        st.text("AB_1", min_size=1, max_size=3),
        st.text(st.characters(exclude_characters="$\0", exclude_categories=["Cs"]))
        | st.integers(-9, 9)
        | st.booleans(),
        max_size=3,
    ),
    "env_file": st.just("absent?") | st.just([]) | st.just(["absent?"]),
    "ignore": _texts,
    "gitignore": st.booleans(),
    "reload": st.one_of(
        st.sampled_from(["restart", "manual"]),
        _signals.map("signal:{}".format),
        _words.map("exec: {}".format),
    ),
    "stop": _signals | _table(signal=_signals, timeout=_durations, to=st.sampled_from(["main", "group"])),
    "shell": st.just("sh") | st.just(["sh", "-e", "-c"]),
    "mode": st.sampled_from(["local", "off"]),
    "groups": st.lists(_labels.map("g-{}".format), max_size=2),
    "debounce": _durations,
}
_restart = _policies | _table(policy=_policies, delay=_durations, limit=st.integers(1, 9), window=_durations)
_service = st.fixed_dictionaries(
    {"command": _commands},
    optional={
        **_common,
        "restart": _restart,
        "cwd": st.sampled_from([".", "sub"]),
        "watch": _texts,
        "build": _commands,
        "ready": _live | _with({"log": st.sampled_from(["listening", r"port \d+$"])}),
        "live": _live,
    },
)
_task = st.fixed_dictionaries(
    {"command": _commands, "task": st.just(True)},
    optional={**_common, "restart": st.sampled_from(["never", "on-failure"]), "ready": st.just(False)},
)


@st.composite
def _files(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(_labels.filter(lambda n: not n.startswith("g-")), min_size=1, max_size=4, unique=True))
    services: dict[str, dict[str, Any]] = {}
    free = iter(range(1024, 2048))
    for name in names:
        service = draw(_service | _task)
        # What a default could switch off would make a dependency on it wrong.
        service.setdefault("mode", "local")
        form = draw(st.sampled_from(["", "one", "array", "table"]))
        port = next(free)
        if form:
            forms: dict[str, Any] = {"one": port, "array": [port, str(next(free))], "table": {"http": port}}
            service["ports"] = forms[form]
        before = [n for n, s in services.items() if s["mode"] == "local"]
        chosen = draw(st.lists(st.sampled_from(before), unique=True)) if before else []
        tasks = {n for n in chosen if services[n].get("task")}
        if chosen and not tasks and draw(st.booleans()):
            service["depends_on"] = chosen
        elif chosen:
            service["depends_on"] = {n: "completed" if n in tasks else "ready" for n in chosen}
            if draw(st.booleans()):
                words = service["depends_on"].items()
                service["depends_on"] = {n: {"condition": c, "restart": draw(st.booleans())} for n, c in words}
        services[name] = service
    file: dict[str, Any] = {"services": services}
    if draw(st.booleans()):
        file["project"] = {"name": draw(_words)}
    if draw(st.booleans()):
        file["defaults"] = draw(_table(**_common, restart=_restart, ready=_table(**_timings), live=_table(**_timings)))
    return file


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(_files())
def test_a_file_that_is_right_loads_and_is_valid(file: dict[str, Any]) -> None:
    text = "\n".join(f"{key} = {toml(value)}" for key, value in file.items())
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        (root / "sub").mkdir()
        (root / "devloop.toml").write_text(text)
        project = load(root / "devloop.toml", {})
    assert list(project.services) == list(file["services"])
    VALIDATOR.validate(tomllib.loads(text))

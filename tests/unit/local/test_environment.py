"""Where variables come from, and which are secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from devloop.local.environment import MASK, is_secret, masked, resolve
from devloop.protocol import Variable
from tests.unit.core.playbook import service


def test_the_later_source_wins_and_is_named() -> None:
    first, second = Path("/p/a.env"), Path("/p/b.env")
    spec = service(
        "api",
        env={"E": "toml"},
        env_files=(first, second),
        file_env={second: {"C": "2", "D": "2", "E": "2"}, first: {"B": "1", "C": "1"}},
    )
    found = {v.name: (v.value, v.origin) for v in resolve(spec, {"A": "h", "B": "h"}, {"RUN": "x"})}
    assert found == {
        "PYTHONUNBUFFERED": ("1", "devloop"),
        "A": ("h", "host"),
        "B": ("1", "/p/a.env"),
        "C": ("2", "/p/b.env"),
        "D": ("2", "/p/b.env"),
        "E": ("toml", "devloop.toml"),
        "RUN": ("x", "devloop"),
    }


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("API_TOKEN", "x", True),
        ("DB_PASSWORD", "x", True),
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("DATABASE_URL", "postgres://me:hunter2@db/shop", True),
        ("DATABASE_URL", "postgres://db/shop", False),
        ("PORT", "80", False),
        ("HOME", "/root", False),
    ],
)
def test_secrets_are_known_by_name_or_by_a_password_in_a_url(name: str, value: str, secret: bool) -> None:
    assert is_secret(name, value) is secret
    variable = next(v for v in resolve(service("api", env={name: value}), {}, {}) if v.name == name)
    assert (masked(variable).value == MASK) is secret


@pytest.mark.parametrize("value", ["", "0", "x"])
def test_python_prints_at_once_unless_somebody_says_otherwise(value: str) -> None:
    name, file = "PYTHONUNBUFFERED", Path("/p/.env")
    workload = [Variable(name, value, "deployment/api")]
    for found in (
        resolve(service("api"), {name: value}, {}),
        resolve(service("api"), {}, {}, workload),
        resolve(service("api", env_files=(file,), file_env={file: {name: value}}), {}, {}),
        resolve(service("api", env={name: value}), {}, {}),
    ):
        (variable,) = (v for v in found if v.name == name)
        assert variable.value == value and variable.origin != "devloop"


def test_a_terminal_has_a_kind_of_its_own_and_nothing_of_the_one_that_devloop_was_started_in() -> None:
    host = {"TERM": "dumb", "COLUMNS": "10", "LINES": "3"}
    found = {v.name: (v.value, v.origin) for v in resolve(service("api", tty=True), host, {})}
    assert found["TERM"] == ("xterm-256color", "devloop")
    assert "COLUMNS" not in found and "LINES" not in found
    found = {v.name: (v.value, v.origin) for v in resolve(service("api", tty=True, env={"TERM": "vt100"}), host, {})}
    assert found["TERM"] == ("vt100", "devloop.toml")
    assert {v.name: v.value for v in resolve(service("api"), host, {})}["TERM"] == "dumb"

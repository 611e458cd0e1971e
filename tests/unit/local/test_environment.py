"""Where variables come from, and which are secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from devloop.local.environment import MASK, is_secret, masked, resolve
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
    (variable,) = resolve(service("api", env={name: value}), {}, {})
    assert (masked(variable).value == MASK) is secret

"""Addresses in an environment, rewritten to ports here."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.net.ports import Dependency, OnDemand, rewrite, rewrite_paths


def dependency(name: str, ports: dict[int, int], *more: str) -> Dependency:
    names = {name, f"{name}.shop", f"{name}.shop.svc", f"{name}.shop.svc.cluster.local", *more}
    return Dependency(name, frozenset(names), ports)


DEPENDENCIES = [
    dependency("api", {80: 41080, 8080: 48080}, "10.96.0.7", "fd00::7"),
    dependency("db", {5432: 45432}),
    dependency("cache", {6379: 6379}),
    dependency("kafka-0", {9092: 49092}),
    dependency("kafka-1", {9092: 49093}),
]


def one(value: str, name: str = "X") -> str:
    return rewrite({name: value}, DEPENDENCIES).env[name]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://api", "http://127.0.0.1:41080"),
        ("http://api/", "http://127.0.0.1:41080/"),
        ("http://api:8080/v1/api?x=api#api", "http://127.0.0.1:48080/v1/api?x=api#api"),
        ("HTTP://API.shop.svc.cluster.local.:8080", "HTTP://127.0.0.1:48080"),
        ("http://10.96.0.7", "http://127.0.0.1:41080"),
        ("http://[fd00::7]:8080/x", "http://127.0.0.1:48080/x"),
        ("http://[fd00:0:0::7]/x", "http://127.0.0.1:41080/x"),
        ("postgres://user:p%40ss@db/shop?sslmode=disable", "postgres://user:p%40ss@127.0.0.1:45432/shop?sslmode=disable"),
        ("postgresql+asyncpg://u:p@db.shop:5432/x", "postgresql+asyncpg://u:p@127.0.0.1:45432/x"),
        ("jdbc:postgresql://db:5432/shop", "jdbc:postgresql://127.0.0.1:45432/shop"),
        ("custom://db/x", "custom://127.0.0.1:45432/x"),
        ("kafka://kafka-0:9092,kafka-1:9092/t", "kafka://127.0.0.1:49092,127.0.0.1:49093/t"),
        ("http://api:80,http://elsewhere:80", "http://127.0.0.1:41080,http://elsewhere:80"),
        ("kafka-0:9092,kafka-1:9092", "127.0.0.1:49092,127.0.0.1:49093"),
        ("a=api:80 b=db:5432", "a=127.0.0.1:41080 b=127.0.0.1:45432"),
        ("user:secret@tcp(db:5432)/shop", "user:secret@tcp(127.0.0.1:45432)/shop"),
        ("dns:///api:8080", "dns:///127.0.0.1:48080"),
        (
            '{"url": "http://api:8080/x", "addr": "db:5432"}',
            '{"url": "http://127.0.0.1:48080/x", "addr": "127.0.0.1:45432"}',
        ),
        ("host=db port=5432 dbname=x", "host=127.0.0.1 port=45432 dbname=x"),
        ("host=db dbname=x", "host=127.0.0.1 port=45432 dbname=x"),
        ("dbname=x host=db", "dbname=x host=127.0.0.1 port=45432"),
        ("Host=db;Port=5432;Database=x", "Host=127.0.0.1;Port=45432;Database=x"),
        ("Server=tcp:db,5432;Database=x", "Server=127.0.0.1,45432;Database=x"),
        ("[fd00::7]:8080", "127.0.0.1:48080"),
    ],
)  # fmt: skip
def test_values(value: str, expected: str) -> None:
    assert one(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "", "api", "db", "the api is up", "/api/v1", "my-api:8080", "api.example.com:8080", "http://my.api/", "xapi:80",
        "http://example.com/db:5432x", "api:808", "api:8080:80", "api:80.5", "http://example.com?next=api",
        "mongodb+srv://db/x", "user:5432@example.com", "http://api:81/", "api-v2:80", "ghcr.io/shop/api:latest",
        "http://user:db@example.com/", "db: 5432",
    ],
)  # fmt: skip
def test_values_that_stay(value: str) -> None:
    assert one(value) == value


def test_pairs_of_variables() -> None:
    env = {
        "DB_HOST": "db", "DB_PORT": "5432", "PGHOST": "db.shop", "PGPORT": "5432", "cache_host": "cache",
        "cache_port": "6379", "API_ADDR": "10.96.0.7", "API_PORT": "8080", "PORT": "8080",
    }  # fmt: skip
    got = rewrite(env, DEPENDENCIES)
    assert got.env == {
        "DB_HOST": "127.0.0.1", "DB_PORT": "45432", "PGHOST": "127.0.0.1", "PGPORT": "45432",
        "cache_host": "127.0.0.1", "cache_port": "6379", "API_ADDR": "127.0.0.1", "API_PORT": "48080", "PORT": "8080",
    }  # fmt: skip
    assert got.notes == ()
    assert got.changed["DB_PORT"] == "5432"
    assert "PORT" not in got.changed


def test_service_links() -> None:
    """The variables of k8s.io/kubernetes/pkg/kubelet/envvars."""
    env = {
        "API_SERVICE_HOST": "10.96.0.7", "API_SERVICE_PORT": "80", "API_SERVICE_PORT_HTTP": "80",
        "API_SERVICE_PORT_ADMIN": "8080", "API_PORT": "tcp://10.96.0.7:80", "API_PORT_80_TCP": "tcp://10.96.0.7:80",
        "API_PORT_80_TCP_PROTO": "tcp", "API_PORT_80_TCP_PORT": "80", "API_PORT_80_TCP_ADDR": "10.96.0.7",
        "OTHER_SERVICE_HOST": "10.96.0.8", "OTHER_SERVICE_PORT": "80",
    }  # fmt: skip
    assert rewrite(env, DEPENDENCIES).env == {
        "API_SERVICE_HOST": "127.0.0.1", "API_SERVICE_PORT": "41080", "API_SERVICE_PORT_HTTP": "41080",
        "API_SERVICE_PORT_ADMIN": "48080", "API_PORT": "tcp://127.0.0.1:41080",
        "API_PORT_80_TCP": "tcp://127.0.0.1:41080", "API_PORT_80_TCP_PROTO": "tcp", "API_PORT_80_TCP_PORT": "41080",
        "API_PORT_80_TCP_ADDR": "127.0.0.1", "OTHER_SERVICE_HOST": "10.96.0.8", "OTHER_SERVICE_PORT": "80",
    }  # fmt: skip


def test_names_that_are_no_addresses_stay() -> None:
    env = {"OTEL_SERVICE_NAME": "api", "POSTGRES_USER": "db", "DB_NAME": "db", "ROLE": "cache"}
    assert rewrite(env, DEPENDENCIES).env == env


def test_notes_say_what_may_not_work() -> None:
    env = {
        "API_URL": "https://api:8080/", "WRONG": "http://api:81/", "DB_HOST": "db", "CACHE_HOST": "cache",
        "SRV": "mongodb+srv://db/x", "NODES": "kafka-0,kafka-1",
    }  # fmt: skip
    got = rewrite(env, DEPENDENCIES)
    assert got.env["DB_HOST"] == got.env["CACHE_HOST"] == "127.0.0.1"
    assert got.env["NODES"] == "127.0.0.1,127.0.0.1"
    notes = {note.partition(":")[0]: note for note in got.notes}
    assert "certificate" in notes["API_URL"]
    assert "has no port 81 (known: 80, 8080)" in notes["WRONG"]
    assert "5432 is 45432" in notes["DB_HOST"]
    assert "CACHE_HOST" not in notes  # its port is the same here
    assert "asks the DNS" in notes["SRV"]


@given(st.dictionaries(st.text(string.ascii_uppercase + "_", min_size=1), st.text()))
def test_nothing_without_a_known_name_is_touched(env: dict[str, str]) -> None:
    nowhere = [Dependency("x", frozenset({"no-such-host.invalid"}), {80: 1})]
    assert rewrite(env, nowhere).env == env


@given(st.text("apidb:/@,.=[]08 -", max_size=30))
def test_rewriting_twice_changes_nothing_more(value: str) -> None:
    once = one(value)
    assert one(once) == once


def test_paths() -> None:
    env = {
        "DATA": "/data", "FILE": "/data/x.db", "LIST": "/data/a:/data/b:/database", "URL": "file:///data/x",
        "SECRET": "/var/run/secrets/x/token", "OTHER": "/srv/data/x", "REL": "./data/x", "HTTP": "http://h/data/x",
        "FLAG": "--dir=/data/deep/x",
    }  # fmt: skip
    moved = {"/data": "/v/data", "/data/deep": "/v/deep", "/var/run/secrets/x": "/v/secrets"}
    assert rewrite_paths(env, moved) == {
        "DATA": "/v/data", "FILE": "/v/data/x.db", "LIST": "/v/data/a:/v/data/b:/database", "URL": "file:///v/data/x",
        "SECRET": "/v/secrets/token", "OTHER": "/srv/data/x", "REL": "./data/x", "HTTP": "http://h/data/x",
        "FLAG": "--dir=/v/deep/x",
    }  # fmt: skip


def test_what_may_have_any_port_is_asked_for_the_one_that_is_named() -> None:
    asked = []

    def make(port: int) -> int | None:
        asked.append(port)
        return None if port == 1 else port + 40000

    def other(host: str) -> Dependency | None:
        return Dependency(host, frozenset(), OnDemand({80: 8}, make)) if host.endswith(".vpc") else None

    env = {
        "DB": "postgres://u@db.vpc/x", "MQ": "mq.vpc:5672", "HOST": "a.vpc", "PORT": "90", "KNOWN": "a.vpc:80",
        "NONE": "a.vpc:1", "ELSEWHERE": "http://example.com:90", "LONE_HOST": "b.vpc",
    }  # fmt: skip
    found = rewrite(env, DEPENDENCIES, other)
    assert found.env == env | {
        "DB": "postgres://u@127.0.0.1:45432/x", "MQ": "127.0.0.1:45672", "HOST": "127.0.0.1", "PORT": "40090",
        "KNOWN": "127.0.0.1:8", "LONE_HOST": "127.0.0.1",
    }  # fmt: skip
    assert set(asked) == {5432, 5672, 90, 1}
    assert any(note.startswith("NONE: ") for note in found.notes)
    assert any(note.startswith("LONE_HOST: ") for note in found.notes)


def test_half_of_a_pair_is_not_rewritten() -> None:
    env = {"DB_HOST": "db", "DB_PORT": "1"}
    found = rewrite(env, DEPENDENCIES)
    assert found.env == env
    assert found.notes == ("DB_PORT: db was left alone: it has no port 1 (known: 5432)",)
    nothing = Dependency("x", frozenset({"x.y"}), {})
    assert rewrite({"X_HOST": "x.y"}, [nothing]).env == {"X_HOST": "x.y"}


def test_ports_may_be_at_another_address_or_name() -> None:
    dependencies = [
        Dependency("api", frozenset({"10.96.0.7"}), {80: 80}, "127.70.0.1"),
        Dependency("pods", frozenset({"pods"}), OnDemand({}, lambda port: port), "pods"),
    ]
    env = {
        "URL": "http://10.96.0.7/x", "API_SERVICE_HOST": "10.96.0.7", "API_SERVICE_PORT": "80", "PODS": "http://pods/x",
        "KEYS": "host=pods port=5432", "POD": "pods:1", "SAFE": "https://pods",
    }  # fmt: skip
    found = rewrite(env, dependencies)
    assert found.env == env | {"URL": "http://127.70.0.1:80/x", "API_SERVICE_HOST": "127.70.0.1"}
    assert found.notes == ()

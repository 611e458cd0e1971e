"""Several compose files as one: overrides, include, extends, tags, variables; and what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from devloop.scaffold import make
from devloop.scaffold.yaml_text import resolved

from .conftest import Generate

BASE = """
services:
  api:
    build: .
    command: python3 serve.py
    environment: {A: "1", B: "2"}
    ports: ["8081:8081"]
    env_file: base.env
    depends_on: [db]
    healthcheck: {test: ["CMD", "./old"], timeout: 3s}
  db: {image: "postgres:17"}
"""


@pytest.mark.parametrize("name", ["compose.override.yaml", "docker-compose.override.yml"])
def test_an_override_file_is_laid_over_the_first(made: Generate, name: str) -> None:
    over = """
services:
  api:
    command: python3 serve.py --reload
    environment: [B=3, C=4]
    ports: ["8081:8081", "8082:8082"]
    env_file: [over.env]
    depends_on: {mail: {condition: service_started}}
    healthcheck: {test: ["CMD", "./new"]}
  mail: {image: mailpit}
"""
    services = made({"compose.yaml": BASE, name: over, "base.env": "", "over.env": ""})
    api = services["api"]
    assert api["command"] == "python3 serve.py --reload"
    assert api["env"] == {"A": "1", "B": "3", "C": "4"}
    assert api["ports"] == [8081, 8082]
    assert api["env_file"] == ["base.env", "over.env"]
    assert api["ready"] == {"exec": "./new", "timeout": "3s"}
    assert set(api["depends_on"]) == {"db", "mail"}
    assert f"from compose.yaml, {name}" in services["text"]


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_compose_file_names_the_files_and_their_order(made: Generate, where: str) -> None:
    files = {
        "a.yaml": "services: {api: {build: ., command: ./a}}",
        "b.yaml": "services: {api: {command: ./b}, more: {build: ., command: ./more}}",
        "compose.yaml": "services: {other: {build: ., command: ./other}}",
    }
    environ = {"COMPOSE_FILE": "a.yaml:b.yaml"}
    services = made(files | ({".env": "COMPOSE_FILE=a.yaml:b.yaml\n"} if where == ".env" else {}), environ)
    assert services["api"]["command"] == "./b"
    assert "more" in services
    assert "other" not in services


def test_tags_reset_and_replace(made: Generate) -> None:
    over = """
services:
  api:
    environment: !override {C: "1"}
    ports: !override ["9000:9000"]
    env_file: !reset []
    healthcheck: !reset null
  db: !reset null
"""
    services = made({"compose.yaml": BASE, "compose.override.yml": over})
    assert services["api"]["env"] == {"C": "1"}
    assert services["api"]["ports"] == {"http": 9000}
    assert "env_file" not in services["api"]
    assert "ready" not in services["api"]
    assert "db" not in services


def test_include_in_all_its_forms(made: Generate) -> None:
    text = """
include:
  - one/compose.yaml
  - path: [two/compose.yaml, two/over.yaml]
    project_directory: two/sub
    env_file: two/own.env
  - path: one/missing.yaml
  - oci://registry/x
services:
  main: {build: ., command: ./main}
"""
    services = made(
        {
            "compose.yaml": text,
            "one/compose.yaml": "services: {one: {build: ./code, command: './one ${FROM_DIR}', env_file: e}}",
            "one/code/x": "",
            "one/e": "",
            "one/.env": "FROM_DIR=there\n",
            "two/compose.yaml": "services: {two: {build: ., command: './two ${OWN}'}}",
            "two/over.yaml": "services: {two: {environment: {A: '1'}}}",
            "two/sub/x": "",
            "two/own.env": "OWN=mine\n",
        }
    )
    assert services["one"]["cwd"] == "one/code"
    assert services["one"]["env_file"] == ["one/e"]
    assert services["one"]["command"] == "./one there"
    assert services["two"]["cwd"] == "two/sub"
    assert services["two"]["command"] == "./two mine"
    assert services["two"]["env"] == {"A": "1"}
    assert "compose.yaml:7:5: include: there is no file one/missing.yaml" in services["text"]
    assert "oci://registry/x is no file here" in services["text"]


def test_extends_another_file_with_its_paths_and_in_a_chain(made: Generate) -> None:
    services = made(
        {
            "compose.yaml": """
services:
  worker:
    extends: {file: lib/common.yaml, service: middle}
    command: ./worker
  lost:
    extends: {file: nowhere.yaml, service: x}
    build: .
    command: ./lost
  loop: {extends: {service: loop2}, build: ., command: ./loop}
  loop2: {extends: {service: loop}}
""",
            "lib/common.yaml": """
services:
  base: {build: code, environment: {QUEUE: jobs, LEVEL: "1"}, env_file: q.env}
  middle: {extends: base, environment: [LEVEL=2]}
""",
            "lib/code/x": "",
            "lib/q.env": "",
        }
    )
    assert services["worker"] == {
        "command": "./worker",
        "cwd": "lib/code",
        "env_file": ["lib/q.env"],
        "env": {"QUEUE": "jobs", "LEVEL": "2"},
    }
    assert "compose.yaml:4:14" not in services["text"]
    assert "compose.yaml:7:14: extends: there is no file nowhere.yaml" in services["text"]
    assert "extends itself in the end" in services["text"]


def test_two_files_that_include_each_other(made: Generate) -> None:
    services = made(
        {
            "compose.yaml": "include: [b.yaml]\nservices: {a: {build: ., command: ./a}}",
            "b.yaml": "include: [compose.yaml]\nservices: {b: {build: ., command: ./b}}",
        }
    )
    assert {"a", "b"} < set(services)
    assert "includes itself" in services["text"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("y", "y"), ("NO", "NO"), ("22:22", "22:22"),
        ("true", True), ("False", False), ("~", None), ("null", None), ("", None), ("010", 8), ("0o10", 8),
        ("08", "08"),        ("0x1F", 31), ("1_000", 1000), ("1.5", 1.5), ("1e3", 1000.0), (".inf", ".inf"),
        ("2026-01-01", "2026-01-01"),
        ("-7", -7), ("=", "="), ("1.2.3", "1.2.3"), ("0b11", 3), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_plain_scalars_are_those_of_go_yaml(text: str, value: object) -> None:
    assert resolved(text) == value
    assert type(resolved(text)) is type(value)


def test_yaml_traps(made: Generate) -> None:
    text = """
x-env: &env {COUNTRY: no, ON: on, RATE: 1.5, MODE: 0755}
services:
  a:
    build: .
    command: ./a
    ports: [22:22, 2222:2222]
    environment:
      <<: [*env]
      MODE: "0755"
    restart: no
---
services:
  a: {environment: {SECOND: document}}
"""
    services = made({"compose.yaml": text})
    assert services["a"]["env"] == {"COUNTRY": "no", "ON": "on", "RATE": "1.5", "MODE": "0755", "SECOND": "document"}
    assert services["a"]["ports"] == [22, 2222]
    assert services["a"]["restart"] == "never"


def test_the_dotenv_beside_the_file_is_read_and_its_values_are_not_written_out(made: Generate) -> None:
    services = made(
        {
            ".env": "AD_PORT=18204\nAD_DOCKERFILE=./docker/ad.Dockerfile\nSECRET='s3${cr}et'\nCOMPOSE_PROFILES=dev\n",
            "docker/ad.Dockerfile": 'FROM python:3\nWORKDIR /app\nCMD ["python", "ad.py"]\n',
            "compose.yaml": """
services:
  ad:
    build: {context: ., dockerfile: "${AD_DOCKERFILE}"}
    ports: ["${AD_PORT}:${AD_PORT}"]
    environment: [AD_PORT, "KEY=${SECRET}", HOME, "P=${SECRET:+yes}"]
    profiles: [dev]
""",
        }
    )
    assert services["ad"]["command"] == "python ad.py"
    assert services["ad"]["ports"] == [18204]
    assert services["ad"]["env"] == {"AD_PORT": "${AD_PORT:-}", "KEY": "${SECRET:-}", "P": "yes"}
    assert services["project"].services["ad"].env["KEY"] == "s3${cr}et"
    assert "s3" not in services["text"]
    assert "mode" not in services["ad"]


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("ports: 8080", "compose.yaml:4:12: ports must be a list; 8080 was taken for its only entry"),
        ("ports: {a: 1}", "compose.yaml:4:12: ports must be a list; it was left out"),
        ("ports: [x]", "compose.yaml:4:13: ports: x is no port"),
        ("expose: 8080", "compose.yaml:4:13: expose must be a list; 8080 was taken for its only entry"),
        ("depends_on: {b: service_healthy}", "compose.yaml:4:21: depends_on.b must be a mapping"),
        ("depends_on: b", "depends_on must be a list; b was taken for its only entry"),
        ("depends_on: {b: {condition: soon}}", "there is no condition soon"),
        ("depends_on: [nobody]", "there is no other service nobody"),
        ("environment: 5", "environment must be a mapping or a list"),
        ("environment: {A: [1]}", "A must be text"),
        ("command: {a: b}", "command must be text or a list"),
        ("healthcheck: [x]", "healthcheck must be a mapping"),
        ("healthcheck: {test: [pg_isready]}", "must begin with CMD, CMD-SHELL or NONE"),
        ("healthcheck: {test: x, timeout: 5}", "healthcheck.timeout: 5 is no duration"),
        ("stop_signal: SIGPWR", "stop_signal: PWR can't be sent"),
        ("restart: sometimes", "restart: sometimes is not known"),
        ("env_file: gone.env", "env_file: there is no file gone.env"),
        ("env_file: ..", "compose.yaml:4:15: env_file: .. is no file, and was left out"),
        ("env_file: main.py/x", "env_file: main.py/x can't be read (Not a directory)"),
        ("command: run ${A", '"${A" is not a variable'),
        ("command: run ${A:?give it}", "A must be set: give it"),
        ("deploy: {replicas: 3}\n    volumes: [data:/x]", "deploy (compose.yaml:4:13), volumes (compose.yaml:5:14)"),
        ("network_mode: host", "Not taken over, since it runs here and in no container: network_mode"),
        ("ports: [53:53/udp]", "compose.yaml:4:13: ports: udp is not taken over"),
    ],
)
def test_what_is_wrong_or_not_taken_over_is_said_with_its_place(
    made: Generate, tmp_path: Path, service: str, said: str
) -> None:
    text = f"services:\n  a:\n    build: .\n    {service}\n  b: {{image: x}}\n"
    services = made({"compose.yaml": text, "main.py": ""})
    flat = " ".join(line.removeprefix("# ") for line in services["text"].splitlines() if line.startswith("#"))
    assert said in flat
    assert any(said in each for each in make(tmp_path, {}).left_out)


def test_dependencies_that_go_round_are_cut_once(made: Generate) -> None:
    text = "services:\n"
    text += "".join(f"  {a}: {{build: ., command: ./x, depends_on: [{b}]}}\n" for a, b in ("ab", "bc", "ca"))
    services = made({"compose.yaml": text})
    assert sum("depends_on" in services[name] for name in "abc") == 2
    assert "waits for this one in the end" in services["text"]


def test_code_that_is_mounted_over_an_image_runs_here(made: Generate) -> None:
    text = """
services:
  web:
    image: node:22
    working_dir: /app/web
    volumes: ["./code:/app", "modules:/app/node_modules"]
    command: npm run dev
  db: {image: postgres, volumes: ["./data:/var/lib/postgresql"]}
"""
    services = made({"compose.yaml": text, "code/web/package.json": "{}", "data/x": ""})
    assert services["web"] == {"command": "npm run dev", "cwd": "code/web"}
    assert services["db"]["mode"] == "off"


def test_profiles_become_groups_that_no_service_is_called_as(made: Generate) -> None:
    text = """
services:
  web: {build: ., command: ./web}
  seed: {build: ., command: ./seed, profiles: [seed, "Üb er", web-profile]}
  more: {build: ., command: ./more, profiles: [web]}
"""
    services = made({"compose.yaml": text})
    assert services["seed"]["groups"] == ["seed-profile", "b-er", "web-profile"]
    assert services["more"]["groups"] == ["web-profile-2"]


def test_a_task_has_neither_probe_nor_restart(made: Generate) -> None:
    text = """
services:
  a: {build: ., command: ./a, depends_on: {m: {condition: service_completed_successfully}}}
  b: {build: ., command: ./b, depends_on: {m: {condition: service_healthy}}}
  m: {build: ., command: ./m, restart: always, healthcheck: {test: ./ok}}
"""
    services = made({"compose.yaml": text})
    assert services["m"] == {"command": "./m", "task": True}
    assert services["b"]["depends_on"] == {"m": "completed"}


@pytest.mark.parametrize(
    ("written", "restart"),
    [("on-failure", "on-failure"), ('"on-failure:3"', {"policy": "on-failure", "limit": 3}), ('"no"', None)],
)
def test_a_task_is_tried_again_as_compose_does(made: Generate, written: str, restart: object) -> None:
    text = f"""
services:
  a: {{build: ., command: ./a, depends_on: {{m: {{condition: service_completed_successfully}}}}}}
  m: {{build: ., command: ./m, restart: {written}}}
"""
    assert made({"compose.yaml": text})["m"].get("restart") == restart


def test_a_terminal_is_taken_over(made: Generate) -> None:
    text = "services:\n  a: {build: ., command: ./a, tty: true, stdin_open: true}\n"
    text += "  b: {build: ., command: ./b, tty: false}\n"
    services = made({"compose.yaml": text})
    assert services["a"]["tty"] is True
    assert "tty" not in services["b"]
    assert "Not taken over" not in services["text"]


def test_files_that_compose_does_not_read_by_itself_are_said(made: Generate) -> None:
    files = {"docker-compose.yml": "services: {a: {build: ., command: ./a}}", "docker-compose.dev.yml": ""}
    text = " ".join(made(files)["text"].replace("\n#", "").split())
    assert "docker-compose.dev.yml was not read, as `docker compose` would not" in text
    assert "`COMPOSE_FILE=docker-compose.yml:docker-compose.dev.yml devloop init` does" in text

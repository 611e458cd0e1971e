from __future__ import annotations

from pathlib import Path

import pytest

from devloop.config.model import Condition, HttpCheck, Mode, Restart
from devloop.errors import ConfigError
from devloop.scaffold import generate

from .conftest import Generate

SHOP = """
services:
  web:
    build: ./web
    ports: ["8080:80"]
    environment:
      API_URL: http://api:8000/v1
      APP_NAME: api
      TITLE: It's "the" shop
    depends_on:
      api: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
      db: {condition: service_started}
  api:
    build: {context: api, target: dev}
    command: uvicorn main:app --port 8000 --log-level ${LEVEL:-info}
    env_file: [common.env, {path: local.env, required: false}]
    ports:
      - target: 8000
        published: "9000"
    environment:
      - DATABASE_URL=postgres://user:${DB_PASSWORD-secret}@db:5432/shop
      - CACHE=redis:6379
      - REDIS_HOST=redis
      - PASSED_ON
      - PRICE=$$5 and $HOME
    healthcheck:
      test: ["CMD", "curl", "-fs", "http://localhost:8000/healthz"]
      timeout: 3s
      retries: 5
      start_period: 1m30s
    restart: unless-stopped
    stop_signal: SIGINT
    stop_grace_period: 20s
  migrate:
    build: api
    command: ["python", "migrate.py", "--all now"]
    restart: "no"
  db:
    image: postgres:17
    ports: ["15432:5432"]
    healthcheck: {test: ["CMD-SHELL", "pg_isready"]}
  redis:
    image: docker.io/library/redis:8-alpine
    ports: ["127.0.0.1:6379:6379", "5555:5555/udp"]
  mail:
    image: mailhog
    profiles: [Debug_Tools]
"""
FILES = {
    "compose.yaml": SHOP,
    "web/Dockerfile": 'FROM node AS b\nWORKDIR /srv\nCMD ["x"]\nFROM b\nCMD ["node", "/srv/server.js"]\n',
    "api/Dockerfile": "FROM python AS dev\nCMD python wrong.py\nFROM python\nCMD false\n",
    "common.env": "A=1\n",
}


def test_what_is_built_runs_here_and_what_is_an_image_is_off(made: Generate) -> None:
    services = made(FILES)
    project = services["project"]
    modes = {name: service.mode for name, service in project.services.items()}
    local = {name for name, mode in modes.items() if mode is Mode.LOCAL}
    assert local == {"web", "api", "migrate"}
    assert services["db"]["command"] == ["docker", "compose", "up", "--no-log-prefix", "db"]
    assert services["db"]["watch"] == []
    assert "Only an image (postgres:17)" in services["text"]
    assert "redis-server --port 6379" in services["text"]
    assert services["mail"]["groups"] == ["debug-tools"]


def test_commands_come_from_the_file_or_the_dockerfile(made: Generate, tmp_path: Path) -> None:
    services = made(FILES, {"LEVEL": "debug"})
    project = services["project"]
    assert services["web"]["command"] == "node server.js"
    assert project.services["web"].cwd == tmp_path / "web"
    assert project.services["api"].command.argv[-1] == "debug"
    assert services["migrate"]["command"] == ["python", "migrate.py", "--all now"]


def test_dependencies_and_tasks(made: Generate) -> None:
    project = made(FILES)["project"]
    assert project.services["web"].depends_on == {
        "api": Condition.READY,
        "migrate": Condition.COMPLETED,
        "db": Condition.STARTED,  # which is off, and so not waited for
    }
    assert project.services["migrate"].task
    assert project.services["migrate"].restart.policy is Restart.NEVER


def test_ports_and_addresses_are_those_of_this_machine(made: Generate) -> None:
    services = made(FILES)
    assert services["web"]["ports"] == {"http": 8080}
    assert "Port 8080 here is 80 in the container" in services["text"]
    assert services["api"]["ports"] == {"http": 8000}
    assert "Port 8000 here was published as 9000" in services["text"]
    assert services["db"]["ports"] == [15432]
    assert services["redis"]["ports"] == [6379]
    env = services["project"].services["api"].env
    assert env["DATABASE_URL"] == "postgres://user:secret@127.0.0.1:15432/shop"
    assert env["CACHE"] == "127.0.0.1:6379"
    assert env["REDIS_HOST"] == "127.0.0.1"
    assert env["PRICE"] == "$5 and "
    assert "PASSED_ON" not in env
    assert services["web"]["env"] == {
        "API_URL": "http://127.0.0.1:8000/v1",
        "APP_NAME": "api",
        "TITLE": 'It\'s "the" shop',
    }
    assert "point to this machine here: db, redis." in services["text"]


def test_health_restart_and_stop(made: Generate) -> None:
    api = made(FILES)["project"].services["api"]
    assert api.ready.check == HttpCheck(api.ready.check.host, 8000, "/healthz")
    assert (api.ready.timeout, api.ready.failures, api.ready.grace) == (3 * 10**9, 5, 90 * 10**9)
    assert api.restart.policy is Restart.ALWAYS
    assert (api.stop.signal, api.stop.timeout) == (2, 20 * 10**9)


def test_env_files_that_are_missing_do_not_break_the_file(made: Generate) -> None:
    services = made(FILES)
    assert services["api"]["env_file"] == ["common.env", "local.env?"]


def test_two_services_with_one_port_inside_get_the_published_ones(made: Generate) -> None:
    text = """
services:
  a: {build: ., command: ./a, ports: ["8081:8080"], environment: {PORT: 8080}}
  b: {build: ., command: ./b, ports: ["8082:8080"], environment: {LISTEN_PORT: "8080"}}
  c: {build: ., command: ./c, ports: ["8080"], environment: {A: "a:8080"}}
  d: {build: ., command: ./d, expose: [8080]}
"""
    services = made({"docker-compose.yml": text})
    assert [list(services[name]["ports"].values()) for name in "abc"] == [[8081], [8082], [8080]]
    assert services["a"]["env"] == {"PORT": "8081"}
    assert services["b"]["env"] == {"LISTEN_PORT": "8082"}
    assert services["c"]["env"] == {"A": "127.0.0.1:8081"}
    assert "ports" not in services["d"]
    assert "Port 8080 is another service's here" in services["text"]


def test_healthchecks_in_the_shell_and_switched_off(made: Generate) -> None:
    text = """
services:
  a: {build: ., command: ./a, healthcheck: {test: "wget -qO- http://127.0.0.1:${PORT:-80}/ || exit 1"}}
  b: {build: ., command: ./b, healthcheck: {test: ["CMD", "./check", "it's"]}}
  c: {build: ., command: ./c, healthcheck: {test: [NONE]}}
  d: {build: ., command: ./d, healthcheck: {disable: true, test: x}}
  e: {build: ., command: ./e, healthcheck: {test: "test -f /tmp/ok && echo $$HOME"}}
"""
    services = made({"compose.yml": text})
    assert services["b"]["ready"] == {"exec": ["./check", "it's"]}
    assert "ready" not in services["c"]
    assert "ready" not in services["d"]
    assert services["project"].services["e"].ready.check.command.argv[-1] == "test -f /tmp/ok && echo $HOME"


def test_extends_merge_keys_and_develop_watch(made: Generate) -> None:
    text = """
x-base: &base
  build: .
  command: ./run
services:
  base: {<<: *base, environment: {A: "1", B: "2"}}
  child:
    extends: {service: base}
    command: ./child
    environment: [B=3]
    develop:
      watch:
        - {action: sync, path: ./src, target: /app, ignore: [tmp/]}
        - {action: rebuild, path: gone.txt}
"""
    services = made({"compose.yaml": text, "src/x": ""})
    assert services["child"] == {
        "command": "./child",
        "env": {"A": "1", "B": "3"},
        "watch": ["src"],
        "ignore": ["tmp/"],
    }


def test_without_a_command_the_code_is_looked_at(made: Generate) -> None:
    text = "services:\n  a: {build: ./app}\n  b: {build: ./nothing}\n  c: {build: ./missing}\n"
    services = made(
        {
            "compose.yaml": text,
            "app/package.json": '{"scripts": {"start": "node x"}}',
            "nothing/readme": "",
        }
    )
    assert (services["a"]["command"], services["a"]["cwd"]) == ("npm run start", "app")
    assert (services["b"]["mode"], services["c"]["mode"]) == ("off", "off")
    assert "which is not here" in services["text"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("services: [", "compose.yaml:1:12: not valid YAML"),
        ("a: 1", "without services"),
        ("", "without services"),
        ("services: {}", "without services"),
        ("services:\n\t- x", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_compose_file_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "compose.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        generate(tmp_path)
    assert what in str(caught.value)


def test_odd_values_do_not_break_it(made: Generate) -> None:
    text = """
services:
  a:
    build: .
    command: ""
    ports: [3000, "3001-3003:3001-3003", "[::1]:3005:3005", "${P:-4000}:${P:-4000}", {target: x}, ":"]
    environment: ["=", "", NOEQ, "A B=c", "Q=${X:?needed} ${Y:+z} ${Z", "N=\\0"]
    depends_on: {ghost: {}, a: }
    healthcheck: {test: []}
    env_file: ./none.env
    profiles: one
  b: not a service
"""
    services = made({"compose.yaml": text.replace('"N=\\0"', '"N=1"')}, {"X": "1"})
    assert services["a"]["ports"] == [3000, 3001, 3002, 3003, 3005, 4000]

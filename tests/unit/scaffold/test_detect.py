# ruff: noqa: E501 - tables
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from devloop.scaffold import generate

from .conftest import Generate

PACKAGE = {"scripts": {"dev": "vite --port 4000", "start": "node ."}}


@pytest.mark.parametrize(
    ("files", "command", "port"),
    [
        ({"package.json": json.dumps(PACKAGE)}, "npm run dev", 4000),
        ({"package.json": json.dumps(PACKAGE), "pnpm-lock.yaml": ""}, "pnpm run dev", 4000),
        ({"package.json": '{"scripts": {"start": "next dev"}}'}, "npm run start", 3000),
        (
            {"package.json": '{"scripts": {"start": "node index.js"}}', "yarn.lock": ""},
            "yarn run start",
            None,
        ),
        ({"manage.py": "import django"}, "python3 manage.py runserver --noreload 8000", 8000),
        (
            {"manage.py": "import django", "uv.lock": ""},
            "uv run python manage.py runserver --noreload 8000",
            8000,
        ),
        (
            {
                "pyproject.toml": '[project]\ndependencies = ["fastapi[standard]>=0.1"]',
                "main.py": "app = FastAPI()",
            },
            "uvicorn main:app --port 8000",
            8000,
        ),
        (
            {
                "pyproject.toml": '[project]\ndependencies = ["FastAPI"]',
                "src/shop/__init__.py": "",
                "src/shop/api.py": "application: FastAPI = fastapi.FastAPI(\n)",
            },
            "uvicorn shop.api:application --port 8000 --app-dir src",
            8000,
        ),
        (
            {"requirements.txt": "flask==3\n", "app.py": "app = Flask(__name__)", ".venv/bin/x": ""},
            ".venv/bin/flask --app app:app run --port 5000",
            5000,
        ),
        (
            {
                "pyproject.toml": "[tool.poetry.dependencies]\nflask = '*'",
                "poetry.lock": "",
                "shop/__init__.py": "def create_app():\n  pass",
            },
            "poetry run flask --app shop run --port 5000",
            5000,
        ),
        ({"go.mod": "module x", "main.go": 'package main\nhttp.ListenAndServe(":9090", nil)'}, None, 9090),
        ({"go.mod": "module x", "cmd/server/main.go": "package main"}, None, None),
        ({"Cargo.toml": '[package]\nname = "srv"', "src/main.rs": ""}, "target/debug/srv", None),
        ({"pom.xml": "<artifactId>spring-boot</artifactId>", "mvnw": ""}, "./mvnw spring-boot:run", 8080),
        ({"build.gradle.kts": 'id("org.springframework.boot")'}, "gradle bootRun", 8080),
        ({"x.csproj": '<Project Sdk="Microsoft.NET.Sdk.Web">'}, "dotnet run", None),
        ({"bin/rails": "", "package.json": "{}"}, "bin/rails server -p 3000", 3000),
        ({"mix.exs": "{:phoenix, 1}"}, "mix phx.server", 4000),
        ({"artisan": "", "config/app.php": ""}, "php artisan serve --port=8000", 8000),
        ({"config.ru": ""}, "bundle exec rackup -p 9292", 9292),
        ({"deno.json": '{"tasks": {"dev": "x"}}'}, "deno task dev", None),
        ({"Makefile": "dev := no\nrun: build\n\t./x\n"}, "make run", None),
        ({"main.py": "print(1)"}, "python3 main.py", None),
        ({"index.html": "<p>"}, "python3 -m http.server --bind 127.0.0.1 8000", 8000),
    ],
)
def test_one_project(made: Generate, files: dict[str, str], command: str | None, port: int | None) -> None:
    services = made(files)
    (name,) = set(services) - {"text", "project"}
    service = services["project"].services[name]
    if command is not None:
        assert services[name]["command"] == command
    assert list(service.ports.values()) == ([port] if port else [])


def test_go_is_built_beside_its_sources_and_not_into_what_is_watched(made: Generate) -> None:
    services = made({"go.mod": "module x", "api/main.go": "package main", "lib/main.go": "package lib"})
    (name,) = set(services) - {"text", "project"}
    assert services[name] == {
        "command": "tmp/api",
        "cwd": "api",
        "build": "go build -o tmp/api .",
        "ignore": ["tmp/"],
    }


def test_a_monorepo_gives_a_service_for_each_part(made: Generate) -> None:
    services = made(
        {
            "package.json": '{"workspaces": ["apps/*"], "scripts": {"dev": "turbo dev"}}',
            "apps/web/package.json": '{"scripts": {"dev": "next dev -p 3100"}}',
            "apps/it's an api/main.py": "",
            "packages/lib/package.json": '{"name": "lib"}',
            "node_modules/x/package.json": '{"scripts": {"start": "no"}}',
            ".hidden/main.py": "",
            "services/jobs/Cargo.toml": '[package]\nname = "jobs"',
            "services/jobs/src/main.rs": "",
            "Cargo.toml": '[workspace]\nmembers = ["services/*"]',
        }
    )
    assert set(services) - {"text", "project"} == {"web", "it-s-an-api", "jobs"}
    assert services["web"]["cwd"] == "apps/web"
    assert services["web"]["watch"] == ["package.json"]
    assert services["jobs"]["command"] == "../../target/debug/jobs"
    assert services["project"].services["it-s-an-api"].cwd.name == "it's an api"


def test_broken_files_are_said_and_passed_over(made: Generate) -> None:
    services = made({"package.json": "{", "Cargo.toml": "[", "pyproject.toml": "=", "main.py": ""})
    (name,) = set(services) - {"text", "project"}
    assert services[name]["command"] == "python3 main.py"
    assert "package.json:1:2: not JSON: Expecting property name" in services["text"]
    assert "Cargo.toml: not TOML" in services["text"]


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (
            {"package.json": json.dumps({"scripts": {"build": "tsc", "start": "node dist/server.js"}}), "src/server.ts": "app.listen(3456)"},
            {"command": "npm run start", "build": "npm run build", "ports": {"http": 3456}},
        ),
        (
            {"package.json": json.dumps({"scripts": {"build": "next build", "start": "next start"}})},
            {"command": "npm run start", "build": "npm run build", "ports": {"http": 3000}},
        ),
        (
            {"package.json": json.dumps({"scripts": {"start": "node index.js"}}), "index.js": "const port = process.env.PORT || 4000"},
            {"command": "npm run start", "ports": {"http": 4000}},
        ),
        (
            {"package.json": '{"main": "srv.js"}', "srv.js": "http.createServer(x).listen(8123)"},
            {"command": ["node", "srv.js"], "ports": {"http": 8123}},
        ),
        (
            {"Cargo.toml": '[package]\nname = "s"', "src/main.rs": 'let l = TcpListener::bind("0.0.0.0:3001")'},
            {"build": "cargo build", "command": "target/debug/s", "ports": {"http": 3001}},
        ),
        (
            {"pom.xml": "<artifactId>quarkus-bom</artifactId>"},
            {"command": "mvn quarkus:dev", "ports": {"http": 8080}, "watch": ["pom.xml"]},
        ),
        (
            {"build.gradle": "spring", "gradlew": "", "src/main/resources/application.yml": "server:\n  port: 9001\n"},
            {"command": "./gradlew bootRun", "ports": {"http": 9001}, "watch": ["src"]},
        ),
        ({"build.gradle": "plugins { id 'application' }"}, {"command": "gradle run", "watch": ["src"]}),
        (
            {"x.csproj": "Sdk.Web", "Properties/launchSettings.json": '{"profiles": {"x": {"applicationUrl": "https://localhost:7001;http://localhost:5123"}}}'},
            {"command": "dotnet run", "ports": {"http": 5123}, "ignore": ["bin/", "obj/"]},
        ),
        ({"public/index.php": "<?php"}, {"command": "php -S 127.0.0.1:8000 -t public/", "ports": {"http": 8000}, "watch": []}),
        ({"app.rb": "require 'sinatra'\n"}, {"command": "ruby app.rb -p 4567", "ports": {"http": 4567}}),
        ({"go.mod": "module x", "main.go": 'package main\nhttp.ListenAndServe(":99999", nil)'}, {"ignore": ["tmp/"]}),
    ],
)  # fmt: skip
def test_how_it_is_built_and_where_it_listens(
    made: Generate, files: dict[str, str], settings: dict[str, object]
) -> None:
    services = made(files)
    (name,) = set(services) - {"text", "project"}
    assert {key: services[name].get(key) for key in settings} == settings
    assert ("ports" in services[name]) == ("ports" in settings)


def test_two_folders_of_one_name_and_one_port_are_kept_apart(made: Generate) -> None:
    package = json.dumps({"scripts": {"dev": "vite"}})
    services = made({"apps/web/package.json": package, "packages/web/package.json": package})
    assert (services["web"]["cwd"], services["web-2"]["cwd"]) == ("apps/web", "packages/web")
    assert "ports" in services["web"]
    assert "ports" not in services["web-2"]
    assert "Port 5173 is web's here" in services["text"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_package_json_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "package.json").write_bytes(json.dumps(PACKAGE).encode(encoding))
    assert 'command = "npm run dev"' in generate(tmp_path, {})


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "package.json")
    os.mkfifo(tmp_path / "compose.yaml")
    assert "nothing was found" in generate(tmp_path, {})

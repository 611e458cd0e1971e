from __future__ import annotations

from pathlib import Path

import pytest

from devloop.errors import ConfigError
from devloop.scaffold import generate
from devloop.scaffold.procfile import from_procfile

from .conftest import Generate


def test_each_process_type_becomes_a_service(made: Generate) -> None:
    services = made(
        {
            "Procfile": "# comment\n\nweb: gunicorn app:app -b 127.0.0.1:$PORT\n"
            "worker_1:  python worker.py --name \"a b\" 'c'\nrelease: ./migrate\nclock: run ${TZ:-UTC} $$\n"
            "not a line\n",
            ".env": "A=1\n",
        }
    )
    assert set(services) - {"text", "project"} == {"web", "worker-1", "release", "clock"}
    assert services["web"]["env"] == {"PORT": "5000"}
    assert services["web"]["ports"] == {"http": 5000}
    assert services["web"]["env_file"] == ".env?"
    assert services["worker-1"]["command"] == "python worker.py --name \"a b\" 'c'"
    assert "ports" not in services["worker-1"]
    assert (services["release"]["task"], services["release"]["mode"]) == (True, "off")
    assert services["project"].services["clock"].command.argv == ("/bin/sh", "-c", "exec run ${TZ:-UTC} $$")
    assert "# worker_1 in the original." in services["text"]


def test_procfile_dev_comes_first_and_compose_is_mentioned(made: Generate) -> None:
    services = made({"Procfile": "a: x", "Procfile.dev": "b: y", "compose.yaml": "services: {c: {image: d}}"})
    assert set(services) - {"text", "project"} == {"b"}
    assert "compose.yaml is here too" in services["text"]


def test_ports_are_those_of_foreman(made: Generate) -> None:
    services = made({"Procfile": "css: watch\nweb: serve\napi: serve -p $PORT\n"})
    assert (services["web"]["ports"], services["api"]["ports"]) == ({"http": 5100}, {"http": 5200})


def test_an_empty_folder_gets_a_template_that_runs(made: Generate, tmp_path: Path) -> None:
    services = made({})
    assert services["app"]["command"] == "python3 -m http.server --bind 127.0.0.1 8000"
    assert "nothing was found" in services["text"]
    assert generate(tmp_path) == services["text"]


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("PORT=13000 serve", 13000),
        ("RAILS_ENV=x PORT='13000' serve", 13000),
        ("export PORT=13000 && serve", 13000),
        ("env PORT=13000 serve", 13000),
        ("env A=b PORT=13000 serve", 13000),
        ("env -u PORT serve -p 13000", 13000),
        ("bash -c 'PORT=13000 serve'", 13000),
        ("(cd x; PORT=13000 exec serve)", 13000),
        ("SERVER_PORT=13000 java -jar x.jar", 13000),
        ("DB_PORT=5432 serve", 5000),
        ("PORT= serve", None),
        ("PORT=$((BASE+1)) serve", None),
        ("PORT=${PORT:-3000} serve", 5000),
        ("env -i serve", None),
        ("env A=b --unset=PORT serve", None),
        ("python3 -m http.server 13000", 13000),
        ("python manage.py runserver 13000", 13000),
        ("php -S localhost:13000 -t public", 13000),
        ("java -Dquarkus.http.port=13000 -jar x", 13000),
        ("serve --http-port 13000", 13000),
        ("./serve -addr :13000", 13000),
        ("./serve app 13000", 13000),
        ("./serve --workers 13000", 5000),
        ("unset PORT && serve", None),
        ("unset A PORT; serve", None),
        ("env -u PORT serve", None),
        ("serve --port 3000", 3000),
        ("serve --port=3000", 3000),
        ("rails s -p 3000", 3000),
        ("rails s -p3000", 3000),
        ("gunicorn app -b 0.0.0.0:3000", 3000),
        ("gunicorn app --bind=[::]:3000", 3000),
        ("gunicorn app -b :3000", 3000),
        ("puma -b tcp://0.0.0.0:3000", 3000),
        ("caddy run --listen :3000", 3000),
        ("manage.py runserver 0.0.0.0:3000", 3000),
        ("serve :3000", 3000),
        ("java -Dserver.port=3000 -jar x.jar", 3000),
        ("serve -p $PORT", 5000),
        ("serve --port ${PORT:-4000}", 5000),
        ("serve", 5000),
        ("serve -n 12345", 5000),
        ("serve redis://db:6379/0", 5000),
    ],
)
def test_a_port_that_the_line_sets_itself(made: Generate, command: str, port: int | None) -> None:
    services = made({"Procfile": f"web: {command}\n"})
    assert services["web"].get("ports") == ({"http": port} if port else None)
    assert ("PORT" in services["web"].get("env", {})) == (port == 5000)


def test_what_is_no_process_type_is_said_and_the_later_of_two_counts(made: Generate) -> None:
    text = "\ufeffweb:\tone\r\n# no\r\n\r\nnonsense\r\nworker : two\r\nweb: three\r\n"
    services = made({"Procfile": text})
    assert services["web"]["command"] == "three"
    assert services["worker"]["command"] == "two"
    assert "# - Procfile:4: not `name: command`, so it was left out" in services["text"]
    assert "# - Procfile:6: web is there twice; the later one counts" in services["text"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_a_procfile_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "Procfile").write_bytes("web: serve ü\r\n".encode(encoding))
    assert 'command = "serve ü"' in generate(tmp_path, {})


def test_a_procfile_that_is_no_text_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_bytes(b"web: a\nweb: \xff\n")
    with pytest.raises(ConfigError, match=r"Procfile:2:6: this is not UTF-8 text"):
        generate(tmp_path, {})


def test_foremans_own_files(made: Generate) -> None:
    services = made(
        {
            ".foreman": "port: 4000\nprocfile: Proc.local\nenv: .env,.env.local\nformation: all=1,worker=0\n",
            "Proc.local": "web: serve\nworker: work $PORT\n",
            "Procfile": "other: x\n",
            ".env": "A=1\n",
            ".env.local": "B=1\n",
        }
    )
    assert services["web"]["ports"] == {"http": 4000}
    assert services["web"]["env_file"] == [".env?", ".env.local?"]
    assert services["worker"]["mode"] == "off"
    assert "other" not in services


def test_the_first_port_is_the_dotenvs(made: Generate) -> None:
    services = made({"Procfile": "web: serve\n", ".env": "PORT=4321\n"})
    assert services["web"]["ports"] == {"http": 4321}


def test_what_watches_its_files_itself_is_not_restarted(made: Generate) -> None:
    services = made({"Procfile": "css: yarn build:css --watch\napi: uvicorn x:app --reload\nweb: serve -p 80\n"})
    assert [services[name].get("watch") for name in ("css", "api", "web")] == [[], [], None]


def test_lines_of_bash_name_their_shell(made: Generate) -> None:
    services = made({"Procfile": "a: source venv/bin/activate && run\nb: run\n"})
    assert services["a"]["shell"] == "bash"
    assert "shell" not in services["b"]


def test_a_program_of_the_virtual_environment_beside_it_is_called_there(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "gunicorn").touch()
    (tmp_path / "Procfile").write_text("web: gunicorn app:app -b :$PORT\nworker: make work\n")
    commands = [draft.settings["command"] for draft in from_procfile(tmp_path / "Procfile").drafts]
    assert commands == [".venv/bin/gunicorn app:app -b :$PORT", "make work"]

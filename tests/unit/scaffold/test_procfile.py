from __future__ import annotations

from pathlib import Path

from devloop.scaffold import generate

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
    assert services["project"].services["clock"].command.argv == ("/bin/sh", "-c", "run ${TZ:-UTC} $$")
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
    assert services["app"]["command"] == "python3 -m http.server 8000"
    assert "nothing was found" in services["text"]
    assert generate(tmp_path) == services["text"]

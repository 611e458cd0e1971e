"""Whatever a folder holds, `devloop init` writes a file that `devloop check` accepts, or says what is wrong."""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devloop.config.load import load
from devloop.config.problems import ConfigProblems
from devloop.errors import DevloopError
from devloop.scaffold import generate

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ODD = st.sampled_from(
    ["web", "Web", "web_api", "a.b", "..", "ünï", "a b", "", "-", "x" * 80, 'q"q', "it's", "a\\b", "#c", "true", "1",
     "${X}", "$$", "${", "~", "~/x", "$(x)", "*", "a=b", "[x]", "web-profile", "\t", "a\nb"]
)  # fmt: skip
ENVIRON = {"X": "x y", "PORT": "8080", "EMPTY": ""}


def accepted(files: dict[str, str | bytes]) -> str:
    """What `init` makes of the files, which `check` accepts; or what it says instead."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        try:
            text = generate(folder, ENVIRON)
        except DevloopError as error:
            return str(error)
        (folder / "devloop.toml").write_text(text, encoding="utf-8")
        try:
            load(folder / "devloop.toml", ENVIRON)
        except ConfigProblems as error:
            # What is wrong with an env file is that file's.
            assert all(problem.file.name != "devloop.toml" for problem in error.problems), error
        return text


SCALARS = (
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats(allow_nan=False) | ODD
    | st.sampled_from(["8080:80", "80-90:80-90", "127.0.0.1:1:2/udp", "1s", "service_healthy", "CMD", "${PORT}:80",
                       "./app", "a/b", "no", "always", "SIGINT", "curl http://localhost:80/x", "echo 'open",
                       "${Y:?say}", "${X:-{}", "web", "seed"])
)  # fmt: skip
ANY = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3), max_leaves=8
)
KEYS = (
    "build", "image", "command", "entrypoint", "environment", "env_file", "ports", "expose", "depends_on",
    "healthcheck", "restart", "stop_signal", "stop_grace_period", "profiles", "working_dir", "develop", "extends",
    "tty", "stdin_open", "links", "networks", "volumes", "deploy", "scale", "hostname", "container_name", "x-y",
)  # fmt: skip
HEALTH = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("test", "timeout", "interval", "start_period", "retries", "disable"), ANY)
)
BUILD = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("context", "dockerfile", "target", "args", "dockerfile_inline"), ANY)
)
SERVICE = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(KEYS, ANY), "healthcheck": HEALTH | ANY, "build": BUILD | ANY | st.just(".")}
)
COMPOSE = st.fixed_dictionaries(
    {"services": st.dictionaries(ODD, SERVICE | ANY, min_size=1, max_size=4) | ANY},
    optional={"include": ANY, "name": ANY, "volumes": ANY, "x-a": ANY, "version": ANY},
)


@pytest.mark.slow
@QUICK
@given(COMPOSE)
def test_any_shape_of_a_compose_file(data: Any) -> None:
    accepted({"compose.yaml": yaml.safe_dump(data, allow_unicode=True)})


@pytest.mark.slow
@QUICK
@given(COMPOSE, COMPOSE)
def test_any_two_compose_files_over_each_other(base: Any, over: Any) -> None:
    accepted({"compose.yaml": yaml.safe_dump(base), "compose.override.yaml": yaml.safe_dump(over)})


@pytest.mark.slow
@QUICK
@given(st.text(st.sampled_from("services:\n  ab{}[]&*!<-|>'\"#%@,?\t0") | st.characters(exclude_categories=["Cs"])))
def test_any_text_as_a_compose_file(text: str) -> None:
    accepted({"compose.yaml": "services:\n  a:\n    build: .\n" + text})


@pytest.mark.slow
@QUICK
@given(st.binary(max_size=60), st.sampled_from(["compose.yaml", "Procfile", ".env", ".foreman", "package.json"]))
def test_any_bytes(content: bytes, name: str) -> None:
    accepted({"Procfile": "web: x\n", name: content})
    accepted({"compose.yaml": "services: {a: {build: .}}", name: content})


@pytest.mark.slow
@QUICK
@given(st.text(st.sampled_from(string.printable + "ü\u2028$"), max_size=60))
def test_any_line_of_a_procfile(line: str) -> None:
    accepted({"Procfile": f"web: {line}\nweb: {line}\nother: run\n", ".env": f"A={line}\n"})


@pytest.mark.slow
@QUICK
@given(st.text(st.sampled_from("abFROMCDUN \\\n`[]\"'$/=-<<E.&;") | st.characters(exclude_categories=["Cs"])))
def test_any_text_as_a_dockerfile(text: str) -> None:
    dockerfile = f'FROM x AS a\nWORKDIR /app\nCOPY . .\nRUN make {text}\n{text}\nCMD ["./bin/x"]\nCMD {text}\n'
    accepted({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile})


@pytest.mark.slow
@QUICK
@given(
    st.sets(
        st.sampled_from(["api", "Api", "it's", "a b", "${X}", "$$", "~", "ünï", "a.b", "*", "x" * 80, 'q"q']),
        min_size=1,
    ),
    st.sampled_from(
        [
            ("package.json", json.dumps({"scripts": {"dev": "vite"}})),
            ("main.py", ""),
            ("Cargo.toml", '[package]\nname = "${X} y"\n'),
            ("Dockerfile", ""),
            ("artisan", ""),
        ]
    ),
)
def test_any_names_of_folders(names: set[str], file: tuple[str, str]) -> None:
    accepted({f"{name}/{file[0]}": file[1] for name in names} | {f"{name}/src/main.rs": "" for name in names})
    compose = {"services": {name: {"build": name, "env_file": f"{name}/e"} for name in names}}
    accepted({"compose.yaml": yaml.safe_dump(compose), **{f"{name}/{file[0]}": file[1] for name in names}})

from __future__ import annotations

from pathlib import Path

import pytest

from devloop.scaffold.dockerfile import as_typed, here, joined, read_stage

TEXT = """\
# syntax=docker/dockerfile:1
FROM --platform=linux/amd64 python:3.12 AS Base
WORKDIR /app
EXPOSE 8000/tcp 9000 53/udp
ENTRYPOINT ["python"]
CMD ["main.py"]

FROM base AS test
CMD ["-m", "pytest"]

FROM base
WORKDIR sub
cmd ["/app/sub/serve.py", \\
  # a comment in between
  "--port", "8000"]
"""


def test_the_last_stage_with_what_it_inherits(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(TEXT)
    stage = read_stage(file)
    assert stage is not None
    assert (stage.entrypoint, stage.workdir, stage.ports) == (["python"], "/app/sub", [8000, 9000])
    command = here(joined(stage.entrypoint, stage.command), stage.workdir)
    assert as_typed(command) == "python serve.py --port 8000"


def test_a_target_is_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(TEXT)
    stage = read_stage(file, "Test")
    assert stage is not None
    assert joined(stage.entrypoint, stage.command) == ["python", "-m", "pytest"]


def test_a_missing_or_empty_file_has_no_stage(tmp_path: Path) -> None:
    assert read_stage(tmp_path / "Dockerfile") is None
    (tmp_path / "Dockerfile").write_text("# nothing\n")
    assert read_stage(tmp_path / "Dockerfile") is None


@pytest.mark.parametrize(
    ("entrypoint", "command", "whole"),
    [
        ("", "run it", "run it"),
        ("exec x", ["ignored"], "exec x"),
        (["a"], "", ["a"]),
        (["a"], "b c", ["a", "/bin/sh", "-c", "b c"]),
        (["a"], ["b"], ["a", "b"]),
    ],
)
def test_entrypoint_and_command_join_by_dockers_rules(
    entrypoint: list[str] | str, command: list[str] | str, whole: list[str] | str
) -> None:
    assert joined(entrypoint, command) == whole


def test_paths_in_the_image_become_paths_here() -> None:
    assert here(["/app/run", "--config=/app/x", "/app/"], "/app") == ["./run", "--config=/app/x", "."]
    assert here("/app/run --config=/app/x", "/app") == "./run --config=./x"
    assert here("/app/run", "/") == "/app/run"

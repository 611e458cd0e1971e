"""Includes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devloop.config.problems import ConfigProblems

from .folder import Folder

A = '[services.a]\ncommand = "a"\n'
B = '[services.b]\ncommand = "b"\n'


def test_includes_bring_services_and_their_paths_are_their_own(folder: Folder) -> None:
    folder.write(
        {
            "services/b.toml": '[services.b]\ncommand = "b"\nenv_file = "b.env"\nwatch = ["w"]\n',
            "services/b.env": "B=1",
            "services/c.toml": '[services.c]\ncommand = "c"\ncwd = "d"\nwatch = ["w"]\n',
            "services/d/x": "",
            "default.env": "",
            "z.toml": '[services.z]\ncommand = "z"\ndepends_on = ["a", "b"]\n',
        }
    )
    project = folder.load(
        'include = ["z.toml", "services/*.toml"]\n[defaults]\nignore = "*.x"\n' + A + "debounce = '9ms'\n"
    )
    root, services = folder.root, project.services
    assert list(services) == ["a", "z", "b", "c"]
    assert services["b"].cwd == root / "services"
    assert services["b"].watch == (root / "services/w",)
    assert services["b"].env_files == (root / "services/b.env",)
    assert services["c"].cwd == root / "services/d"
    assert services["c"].watch == (root / "services/d/w",)
    assert all(service.ignore == ("*.x",) for service in services.values())
    files = ["devloop.toml", "z.toml", "services/b.toml", "services/c.toml", "services/b.env"]
    assert project.files == tuple(root / name for name in files)


def test_an_env_file_of_the_defaults_is_relative_to_the_project_file(folder: Folder) -> None:
    folder.write({"s/b.toml": B, "shared.env": "X=1"})
    project = folder.load('include = ["s/b.toml"]\n[defaults]\nenv_file = "shared.env"\n')
    assert project.services["b"].env_files == (folder.root / "shared.env",)


def test_a_file_that_two_patterns_name_is_read_once_and_the_project_file_never_again(folder: Folder) -> None:
    folder.write({"b.toml": B, "deep/er/c.toml": '[services.c]\ncommand = "c"\n'})
    project = folder.load('include = ["*.toml", "b.toml", "./b.toml", "**/*.toml"]\n' + A)
    assert list(project.services) == ["a", "b", "c"]


def test_an_absolute_path_can_be_included(folder: Folder) -> None:
    folder.write({"b.toml": B})
    assert list(folder.load(f'include = "{folder.root}/b.toml"\n{A}').services) == ["a", "b"]


def test_a_pattern_that_matches_nothing(folder: Folder) -> None:
    messages = folder.refuse('include = [§"nope/*.toml", §"nope.toml", §"."]\n' + A)
    assert messages[0].startswith('include: no file matches "nope/*.toml" | it is looked for in ')
    assert messages[1].startswith('include: there is no file "nope.toml" | ')


def problems(folder: Folder, text: str) -> list[str]:
    with pytest.raises(ConfigProblems) as caught:
        folder.load(text)
    return [str(p).replace(f"{folder.root}/", "") for p in caught.value.problems]


def test_a_service_that_is_defined_twice_is_named_with_both_places(folder: Folder) -> None:
    folder.write({"b.toml": "\n" + A, "c.toml": B + A})
    assert problems(folder, 'include = ["b.toml", "c.toml"]\n\n' + A) == [
        "b.toml:2:11: services.a is defined twice: here and at devloop.toml:3:11\n  remove or rename one",
        "c.toml:3:11: services.a is defined twice: here and at devloop.toml:3:11\n  remove or rename one",
    ]


def test_an_included_file_has_services_only(folder: Folder) -> None:
    folder.write({"b.toml": 'include = ["c.toml"]\nnope = 1\n[defaults]\n[project]\nname = "x"\n' + B})
    found = problems(folder, 'include = "b.toml"\n' + A)
    assert [p.partition("\n")[0] for p in found] == [
        'b.toml:1:1: "include" belongs into the project file; an included file has services only',
        'b.toml:2:1: unknown key "nope"',
        'b.toml:3:2: "defaults" belongs into the project file; an included file has services only',
        'b.toml:4:2: "project" belongs into the project file; an included file has services only',
    ]


def test_a_file_that_can_not_be_read_does_not_hide_the_others_and_makes_no_name_unknown(
    folder: Folder,
) -> None:
    folder.write({"b.toml": "oops", "c.toml": '[services.c]\ncommand = "c"\ndepends_on = "b"\ntask = 1\n'})
    found = problems(folder, 'include = ["*.toml"]\n[services.a]\ncommand = "a"\ncwd = "nope"\n')
    assert [p.partition(": ")[0] for p in found] == ["devloop.toml:4:7", "b.toml:1:5", "c.toml:4:8"]


def test_problems_are_sorted_by_file_as_included_then_by_line(folder: Folder) -> None:
    folder.write({"z.toml": B + "x = 1\ny = 1\n", "a.toml": "x = 1"})
    found = problems(folder, 'include = ["z.toml", "a.toml"]\nz = 1\n' + A)
    assert [p.partition(": ")[0] for p in found] == [
        "devloop.toml:2:1",
        "z.toml:3:1",
        "z.toml:4:1",
        "a.toml:1:1",
    ]


def _refusing(name: str, way: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(path: Any, *args: Any, **more: Any) -> Any:
        if isinstance(path, Path) and path.name == name:
            raise PermissionError(13, "Permission denied")
        return way(path, *args, **more)

    return refuse


@pytest.mark.parametrize("name", ["b.toml", ".env", "e"])
def test_a_file_without_permission_is_said(folder: Folder, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder.write({"b.toml": B, ".env": "", "e": ""})
    monkeypatch.setattr(os, "open", _refusing(name, os.open))
    (said,) = problems(folder, 'include = "b.toml"\n[services.x]\ncommand = "x"\nenv_file = "e"\n')
    assert "can't be read: Permission denied" in said
    assert name in said

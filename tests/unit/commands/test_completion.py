"""What a shell completes SERVICE with."""

from __future__ import annotations

from pathlib import Path

from devloop.commands.completion import found


def test_services_and_groups_of_the_file_and_what_it_includes(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    (folder / "services").mkdir(parents=True)
    (folder / "devloop.toml").write_text(
        'include = ["services/*.toml", "../shared.toml", "nowhere/*.toml"]\n[services.web]\ngroups = ["front", "all"]\n'
    )
    (folder / "services" / "api.toml").write_text('[services.api]\ngroups = "back"\n')
    (folder / "services" / "broken.toml").write_text("[services.")
    (tmp_path / "shared.toml").write_text("[services.store]\n")
    assert found(folder / "devloop.toml") == {"web", "front", "all", "api", "back", "store"}


def test_a_file_that_says_something_else_has_no_names(tmp_path: Path) -> None:
    file = tmp_path / "devloop.toml"
    for text in ("services = 1", "include = 7\n[services]\nweb = 1", "[services.web]\ngroups = 3", "\xff"):
        file.write_text(text)
        assert found(file) <= {"web"}

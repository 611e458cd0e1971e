"""A first devloop.toml, made from what a folder already says about its services."""

from __future__ import annotations

from pathlib import Path

from devloop.scaffold.draft import PLACEHOLDER, render

COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
"""In the order in which `docker compose` looks for them."""
PROCFILES = ("Procfile.dev", "Procfile")


def generate(folder: Path) -> str:
    """The text of a commented devloop.toml for this folder.

    From its Procfile, or else its compose file, or else the projects found in it and in its subfolders. If
    there is nothing to go by, it is a template. Raises ConfigError if the file it starts from can't be read.
    """
    # Imported here: YAML is slow to import, and not needed where there is a Procfile.
    procfile = next((folder / name for name in PROCFILES if (folder / name).is_file()), None)
    compose = next((folder / name for name in COMPOSE_FILES if (folder / name).is_file()), None)
    if procfile is not None:
        from devloop.scaffold.procfile import from_procfile

        drafts, source = from_procfile(procfile), procfile.name
        if compose is not None:
            source += f". {compose.name} is here too, and was not looked at"
    elif compose is not None:
        from devloop.scaffold.compose import from_compose

        drafts, source = from_compose(compose), compose.name
    else:
        from devloop.scaffold.detect import from_folder

        drafts, source = from_folder(folder), "what was found in this folder"
    if not drafts:
        return render(folder.resolve().name, "a template: nothing was found here to start from", [PLACEHOLDER])
    return render(folder.resolve().name, f"from {source}", drafts)

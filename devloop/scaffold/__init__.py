"""A first devloop.toml, made from what a folder already says about its services."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devloop.scaffold.draft import PLACEHOLDER, Draft, render


@dataclass(frozen=True, slots=True)
class Made:
    """A devloop.toml that was made."""

    text: str
    left_out: tuple[str, ...]
    """What of its source was not taken over, a sentence each; the text says it too, in comments."""
    services: int
    off: tuple[str, ...] = ()
    """Services that nothing runs until their `mode` is another one."""


def generate(folder: Path, environ: Mapping[str, str] | None = None) -> str:
    """The text of `made`."""
    return make(folder, environ).text


def make(folder: Path, environ: Mapping[str, str] | None = None) -> Made:
    """A commented devloop.toml for this folder.

    From its Procfile, or else its compose files, or else the projects found in it and in its subfolders. If there is
    nothing to go by, it is a template. `environ` is for the variables of a compose file; without, the process's own.
    Raises ConfigError if the file it starts from can't be read.
    """
    # Imported here: YAML is slow to import, and `devloop init` alone needs it.
    from devloop.scaffold.compose_files import compose_files, other_compose_files
    from devloop.scaffold.procfile import from_procfile, procfile_of

    known = os.environ if environ is None else environ
    project = folder.resolve().name
    left_out: list[str] = []
    drafts: list[Draft] = []
    procfile = procfile_of(folder)
    compose = compose_files(folder, known)
    if procfile is not None:
        read = from_procfile(procfile, known)
        drafts, left_out, source = read.drafts, read.left_out, procfile.name
        if compose:
            source += f". {compose[0].name} is here too, and was not looked at"
    elif compose:
        from devloop.scaffold.compose import from_compose

        drafts, found = from_compose(folder, compose, known)
        left_out, source, project = found.left_out, ", ".join(found.files), found.name or project
    else:
        from devloop.scaffold.detect import from_folder
        from devloop.scaffold.files import unreadable

        drafts, source = from_folder(folder), "what was found in this folder"
        left_out += unreadable(folder)
    if procfile is None:
        left_out += other_compose_files(folder, compose)
    if not drafts:
        source = f"{procfile.name} holds no process types" if procfile else "nothing was found here to start from"
        text = render(project, f"a template: {source}", [PLACEHOLDER], left_out)
        return Made(text, tuple(left_out), 1)
    text = render(project, f"from {source}", drafts, left_out)
    dropped = [f"{draft.name}: {each}" for draft in drafts for each in draft.dropped]
    off = tuple(draft.name for draft in drafts if draft.settings.get("mode") == "off")
    return Made(text, (*left_out, *dropped), len(drafts), off)

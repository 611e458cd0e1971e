"""`devloop trust`: what a project reaches outside of itself, and that this user agrees to it as it is now."""

from __future__ import annotations

import argparse
import os

from devloop import trust as agreements
from devloop.commands.common import project_file
from devloop.commands.completion import files
from devloop.places import stranger, user_name


def trust(args: argparse.Namespace) -> int:
    """`devloop trust`. Starts nothing and asks nobody: who has typed it has agreed."""
    from devloop.config.load import load
    from devloop.config.problems import ConfigProblems
    from devloop.remote.reach import reach

    file = project_file(args, anybodys=True)
    owners = {uid for path in (file.parent, file.parent / ".env", *files(file)) if (uid := stranger(path)) is not None}
    agreements.agree(file, owners=owners)
    try:
        project = load(file, os.environ)
    except ConfigProblems as error:
        if not error.foreign:
            raise
        owners |= set(error.foreign.values())
        agreements.agree(file, owners=owners)
        project = load(file, os.environ)
    for uid in sorted(owners):
        print(f"{file} may belong to {user_name(uid)}")
    found = reach(project.remote, project.root)
    agreements.agree(file, reach=found)
    print(f"{file} may use:" if found else f"{file} reaches nothing outside of its folder that it names itself")
    for text in found.values():
        print(f"  {text}")
    return 0

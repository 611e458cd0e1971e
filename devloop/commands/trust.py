"""`devloop trust`: what a project reaches outside of itself, and that this user agrees to it as it is now."""

from __future__ import annotations

import argparse

from devloop import trust as agreements
from devloop.commands.common import project_file
from devloop.commands.completion import files
from devloop.places import stranger, user_name


def trust(args: argparse.Namespace) -> int:
    """`devloop trust`."""
    file = project_file(args, anybodys=True)
    owners = {uid for path in (file.parent, *files(file)) if (uid := stranger(path)) is not None}
    agreements.agree(file, owners=owners)
    for uid in sorted(owners):
        print(f"{file} may belong to {user_name(uid)}")
    return 0

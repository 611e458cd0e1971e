"""A Debian made by debootstrap, as a tar."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from .commands import command


def write_root(out: Path, suite: str, packages: Iterable[str], trim: str, mirror: str = "") -> None:
    """Write the smallest Debian of a release with these packages to the tar `out`. Takes root.

    `trim` is a shell script that removes from the folder $1 what nobody needs.
    """
    root = out.with_suffix(".root")
    try:
        # In mounts and processes of its own: what a package's script starts or mounts ends here.
        command(
            *("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"),
            *("debootstrap", "--variant=minbase", f"--include={','.join(packages)}"),
            *(suite, str(root), *([mirror] if mirror else [])),
        )
        command("sh", "-ec", trim, "sh", str(root))
        command(
            *("tar", "-C", str(root), "--numeric-owner", "--one-file-system", "--sort=name"),
            *("-cf", str(out), "."),
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)

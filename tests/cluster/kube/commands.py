"""Running the commands of the host."""

from __future__ import annotations

import subprocess

from .errors import ClusterError


def command(*argv: str) -> str:
    """Run a command of the host's; what it says on failure goes into the error."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout

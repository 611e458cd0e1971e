"""Who somebody is, for colleagues: the name in routes, leases and messages. It proves nothing."""

from __future__ import annotations

import os

VARIABLE = "DEVLOOP_USER"
"""The environment variable, or entry of the project's .env, that gives a name of one's own."""

LONGEST = 63
"""Characters of a name."""


def login() -> str:
    """The login name; the user's number where there is none, as in a container that runs as any uid."""
    import getpass  # late: `--help` and `status` do without

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid-{os.getuid()}"

"""Who somebody is, for colleagues: the name in routes, leases and messages. It proves nothing."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "DEVLOOP_USER"
"""The environment variable, or entry of the project's .env, that gives a name of one's own."""

LONGEST = 63
"""Characters of a name."""


def own_file() -> Path:
    """A developer's own file, for all of their projects: `~/.config/devloop/config.toml`, or where it belongs."""
    import platformdirs  # late: where a name is given elsewhere, or needed by nobody, it is not looked for

    return platformdirs.user_config_path("devloop") / "config.toml"


def login() -> str:
    """The login name; the user's number where there is none, as in a container that runs as any uid."""
    import getpass  # late: `--help` and `status` do without

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid-{os.getuid()}"

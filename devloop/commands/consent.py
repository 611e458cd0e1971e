"""Who has agreed to what a project reaches outside of its folder.

`devloop up` is consent: the first one remembers what the project reaches, without a question. When that has changed, it
is shown and asked about once. Commands that only show reach nothing that nobody has agreed to.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from devloop import trust
from devloop.config.model import Project, Remote, RemoteKind, Service
from devloop.errors import ConfigError, DevloopError
from devloop.local.left_out import HERE, reason
from devloop.remote.reach import CONTEXT, reach
from devloop.terminal import in_ci

ANY = "any"
"""For `settle`: whatever it is now is agreed to."""


class ChangedError(ConfigError):
    """What a project reaches is not what was agreed to."""

    def __init__(self, file: Path, change: trust.Change, digest: str) -> None:
        lines = [*(f"  - {each}" for each in change.gone), *(f"  + {each}" for each in change.new)]
        super().__init__(
            "\n".join(["what this project reaches outside of its folder has changed:", *lines]),
            where=str(file),
            hint=f"look through it, then `{_command('up', file, '--trust')}`, or `{_command('trust', file)}`",
        )
        self.digest = digest
        """Of what it reaches now, for `settle`."""


class UnagreedError(ConfigError):
    """A command that only shows would reach what nobody has agreed to."""


def settle(project: Project, agreed_to: str = "") -> None:
    """For `devloop up`. `agreed_to` is a digest that somebody has said yes to, or ANY. Raises ChangedError."""
    now = reach(project.remote, project.root)
    change = trust.change(project.file, now)
    digest = trust.digest(now)
    if change is not None and not change.first and change.new and agreed_to not in (ANY, digest):
        raise ChangedError(project.file, change, digest)
    with contextlib.suppress(DevloopError):  # where nothing can be written down, each time is the first
        trust.agree(project.file, reach=now)


def require(project: Project, remote: Remote, *, looks: bool = True) -> None:
    """For every other command: `remote` is what it is about to reach. Raises UnagreedError.

    One that `looks` asks the API server alone, and takes no image.
    """
    if looks:
        remote = replace(remote, agent_image=None, direct=True)
    now = reach(remote, project.root)
    if not any(key.partition(" ")[0] == "kubeconfig" for key in now):
        now.pop(CONTEXT, None)  # of the user's own file: to look there takes no consent
    before = trust.agreed(project.file).reach
    if not now and (remote.kind is not RemoteKind.SANDBOX or before is not None):
        return
    if before is not None and all(before.get(key) == text for key, text in now.items()):
        return
    known = set((before or {}).values())
    lines = [f"  {each}" for each in now.values() if each not in known] or ["  a sandbox of its manifests' commands"]
    raise UnagreedError(
        "\n".join(["this would use what the project names, and nobody has agreed to it as it is now:", *lines]),
        where=str(project.file),
        hint=f"look through it, then `{_command('trust', project.file)}` (`devloop up` agrees, too)",
    )


def require_commands(project: Project, service: Service) -> None:
    """For a command in a service's environment that no engine gives. Raises UnagreedError if the project's variables
    decide what that runs, and nobody has said `up`."""
    if trust.agreed(project.file).reach is not None:
        return
    given = {**{name: value for file in service.file_env.values() for name, value in file.items()}, **service.env}
    names = sorted(name for name, value in given.items() if name in HERE or reason(name, value))
    if names:
        raise UnagreedError(
            f"variables of {service.name} decide which programs run, and nobody has agreed to that: {', '.join(names)}",
            where=str(project.file),
            hint=f"look through it, then `{_command('trust', project.file)}` (`devloop up` agrees, too)",
        )


def asked(error: DevloopError) -> bool:
    """Show what has changed and ask, if there is a terminal to ask on. Raises the error where there is none."""
    if in_ci(os.environ) or not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
        raise error
    print(f"devloop: {error.what}\nGo on with that? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _is_terminal(stream: object) -> bool:
    try:
        return bool(stream is not None and stream.isatty())  # type: ignore[attr-defined]  # closed, or none
    except ValueError:
        return False


def _command(name: str, file: Path, *options: str) -> str:
    named = [] if file.name == "devloop.toml" and file.parent == Path.cwd() else ["-f", str(file)]
    return shlex.join(["devloop", name, *named, *options])

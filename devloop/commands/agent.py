"""`devloop agent`: install the pod that carries links, uninstall it, show it, print it for an administrator."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from devloop.commands.common import print_json
from devloop.commands.remote import at, cluster, project
from devloop.escapes import name as one_line

if TYPE_CHECKING:
    from devloop.remote.kubernetes.kept import Standing


def manifest(args: argparse.Namespace) -> int:
    """`devloop agent manifest`: for `kubectl apply -f -`. Asks no cluster."""
    from devloop.remote.kubernetes import kept
    from devloop.remote.open import agent_image
    from devloop.remote.roles import Role

    remote = cluster(args, project(args), asks=False)
    role = Role(args.role)
    if args.role_only:
        sys.stdout.write(kept.roles(remote.namespace, role))
    else:
        sys.stdout.write(kept.manifests(args.image or agent_image(remote), remote.namespace, role))
    return 0


def install(args: argparse.Namespace) -> int:
    """`devloop agent install`: returns when the agent runs."""
    from devloop.remote.kubernetes import kept
    from devloop.remote.open import agent_image

    of = project(args)
    remote = cluster(args, of)
    if of is not None and not args.image:
        from devloop.commands.consent import require

        require(of, remote, looks=False)
    image = args.image or agent_image(remote)
    where, made = at(remote, lambda api: kept.install(api, image, _tell))
    print(f"{where}: {'the agent runs' if made else 'an agent was there already, and it runs'}")
    return 0


def uninstall(args: argparse.Namespace) -> int:
    """`devloop agent uninstall`. Nothing to remove is no error."""
    from devloop.remote.kubernetes import kept

    remote = cluster(args, project(args))
    where, removed = at(remote, kept.uninstall)
    print(f"{where}: {' and '.join(removed)} removed" if removed else f"{where}: nothing was installed")
    return 0


def status(args: argparse.Namespace) -> int:
    """`devloop agent status`. No agent is an answer too, and no error."""
    from devloop.remote.kubernetes import kept

    remote = cluster(args, project(args))
    where, found = at(remote, kept.standing)
    if args.json:
        print_json({"where": where, "agent": asdict(found) if found else None})
    else:
        print(_text(where, found))
    return 0


def _text(where: str, agent: Standing | None) -> str:
    if agent is None:
        return f"{where}: no agent; the first `devloop up` makes one, or `devloop agent install`"
    leaves = "stays until it is removed"
    if not agent.installed:
        leaves = f"goes with its last client (after {agent.linger_seconds} s, if that one crashes)"
    rows = [
        ("pod", f"{agent.pod}, {agent.state}"),
        ("image", agent.image),
        ("since", _since(agent.since)),
        ("made by", agent.made_by or "unknown"),
        ("life", leaves),
    ]
    if agent.clients is None:
        rows.append(("keys", "you may not list ConfigMaps"))
    elif not agent.clients:
        rows.append(("keys", "none"))
    for index, client in enumerate(agent.clients or ()):
        rows.append(("" if index else "keys", f"{client.name}  {client.fingerprint}"))
    return "\n".join([where, *(f"  {label:8} {one_line(text)}" for label, text in rows)])


def _since(text: str) -> str:
    """A time of the API's, here, with how long ago that was."""
    then = datetime.fromisoformat(text)
    minutes = int((datetime.now(UTC) - then).total_seconds()) // 60
    ago = f"{minutes} min"
    if minutes >= 48 * 60:
        ago = f"{minutes // 1440} days"
    elif minutes >= 120:
        ago = f"{minutes // 60} h"
    return f"{then.astimezone():%Y-%m-%d %H:%M} ({ago} ago)"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

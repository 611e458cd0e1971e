"""What a project reaches outside of its own folder, in words: what somebody agrees to, and sees when it changes.

Not what it runs here (`devloop up` is consent to that), and not what is the user's own: a kubeconfig that kubectl would
take too, and its exec plugin, are named by no repository.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from devloop.config.model import Remote, RemoteKind
from devloop.errors import DevloopError
from devloop.escapes import name


def reach(remote: Remote | None, root: Path) -> dict[str, str]:
    """Each thing once, by a key that stays the same when it changes. Reads the kubeconfig that the project names."""
    return {} if remote is None else {key: name(text) for key, text in _found(remote, root)}


def _found(remote: Remote, root: Path) -> Iterator[tuple[str, str]]:
    match remote.kind:
        case RemoteKind.KUBERNETES:
            if remote.kubeconfig is not None:
                yield "kubeconfig", f"kubeconfig {remote.kubeconfig}"
                yield from _credentials(remote)
            if remote.agent_image is not None:
                yield "agent_image", f"agent_image {remote.agent_image}"
            if isinstance(remote.direct, tuple):
                yield "direct", "direct {}:{}".format(*remote.direct)
        case RemoteKind.SSH:
            yield "host", f"host {remote.host}, by SSH"
        case RemoteKind.SANDBOX:
            named = [*remote.manifests, *remote.images.values()]
            for path in sorted({each for each in named if not each.is_relative_to(root.resolve())}):
                yield f"path {path}", f"{path}, for the sandbox"


def _credentials(remote: Remote) -> Iterator[tuple[str, str]]:
    """What the named kubeconfig makes run, and which files it has sent or shown to its cluster."""
    from devloop.remote.kubernetes.kubeconfig import choose, files

    try:
        user = choose(files(remote.kubeconfig), remote.context, remote.namespace).user
    except (DevloopError, OSError, ValueError, AttributeError, TypeError):
        return  # it is not there yet, or is none: what uses it says so
    plugin = user.get("exec")
    if isinstance(plugin, Mapping):
        yield "exec", f"exec plugin {_command(plugin)}"
    if user.get("auth-provider"):
        yield "auth-provider", f"auth-provider {_digest(user['auth-provider'])}"
    for key in ("tokenFile", "client-certificate", "client-key"):
        if user.get(key):
            yield key, f"{key} {user[key]}"


def _command(plugin: Mapping[str, Any]) -> str:
    words = [str(plugin.get("command", "")), *map(str, plugin.get("args") or [])]
    env = [each for each in plugin.get("env") or [] if isinstance(each, Mapping)]
    # Values may be secret: they count, and are not shown.
    given = [f"{each.get('name')}=({_digest(each.get('value'))})" for each in env]
    return " ".join([*given, shlex.join(words)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]

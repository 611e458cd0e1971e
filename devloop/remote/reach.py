"""What a project reaches outside of its own folder, in words: what somebody agrees to, and sees when it changes.

Not what it runs here (`devloop up` is consent to that), and not what is the user's own: a kubeconfig that kubectl would
take too, and its exec plugin, are named by no repository, and what the user changes in it is the user's business. Which
context of it is used the repository may say, so another one counts.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from devloop.config.model import Remote, RemoteKind
from devloop.errors import ConfigError, DevloopError
from devloop.paths import kind

CONTEXT = "context"
"""The key of the cluster that the project chooses: of its kubeconfig, or of the user's own."""
_FROM_ELSEWHERE = ("exec", "auth-provider", "tokenFile")
"""Of a kubeconfig's user: credentials that do not stand in the file, and that the API server is sent."""


def reach(remote: Remote | None, root: Path) -> dict[str, str]:
    """Each thing once, by a key that stays the same when it changes. Reads the kubeconfig that the project names."""
    return {} if remote is None else dict(_visible(*each) for each in _found(remote, root))


def _visible(key: str, text: str) -> tuple[str, str]:
    """What a terminal can show on one line, different for different texts: who agrees has seen all of it."""
    if text.isprintable():
        return key, text
    # A text could hold the escapes themselves, so that the key tells the two apart.
    escaped = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return f"{key} {_digest(text)}", escaped


def _is_own(file: Path) -> bool:
    """Whether kubectl would take it too: `kubeconfig = "~/.kube/config"` names nothing that is not there anyway."""
    from devloop.remote.kubernetes.kubeconfig import files

    try:
        return any(each.resolve() == file for each in files())
    except (OSError, RuntimeError, ValueError):  # no home, a null character
        return False


def _found(remote: Remote, root: Path) -> Iterator[tuple[str, str]]:
    match remote.kind:
        case RemoteKind.KUBERNETES:
            if remote.context is not None:
                yield CONTEXT, f"context {remote.context}"
            if remote.kubeconfig is not None and not _is_own(remote.kubeconfig):
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
    """What the named kubeconfig makes run, which files it has sent or shown to its cluster, and which that is."""
    from devloop.remote.kubernetes.kubeconfig import choose, files

    what = kind(remote.kubeconfig) if remote.kubeconfig else ""
    if what not in ("", "a file"):  # which says something else each time, or has no end
        raise ConfigError(
            f"this is {what}, and no kubeconfig",
            where=str(remote.kubeconfig),
            hint="name a file as `kubeconfig` in [remote]",
        )
    try:
        chosen = choose(files(remote.kubeconfig), remote.context, remote.namespace)
    except (DevloopError, OSError, ValueError, AttributeError, TypeError):
        return  # it is not there yet, or is none: what uses it says so
    user = chosen.user
    if plugin := user.get("exec"):
        yield "exec", f"exec plugin {_command(plugin)}"
    if user.get("auth-provider"):
        yield "auth-provider", f"auth-provider {_digest(user['auth-provider'])}"
    for key in ("tokenFile", "client-certificate", "client-key"):
        if user.get(key):
            yield key, f"{key} {user[key]}"
    if any(user.get(key) for key in _FROM_ELSEWHERE):
        yield "server", f"what that gives is sent to {_destination(chosen.cluster)}"


def _destination(cluster: Mapping[str, Any]) -> str:
    """Who gets it, and by what that is recognised: its certificates count, and are not shown."""
    through = f" through {cluster['proxy-url']}" if cluster.get("proxy-url") else ""
    return f"{cluster.get('server')}{through} ({_digest(cluster)})"


def _command(plugin: object) -> str:
    if not isinstance(plugin, Mapping):
        return _digest(plugin)  # which is none, and will be told
    args, variables = plugin.get("args") or [], plugin.get("env") or []
    if not isinstance(args, list) or not isinstance(variables, list):
        return f"{plugin.get('command', '')} ({_digest(plugin)})"
    env = [each for each in variables if isinstance(each, Mapping)]
    # Values may be secret: they count, and are not shown.
    given = [f"{each.get('name')}=({_digest(each.get('value'))})" for each in env]
    return " ".join([*given, shlex.join([str(plugin.get("command", "")), *map(str, args)])])


def _digest(value: object) -> str:
    try:
        text = json.dumps(value, sort_keys=True, default=str)
    except (ValueError, TypeError):  # YAML has keys of several kinds, and circles
        text = repr(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]

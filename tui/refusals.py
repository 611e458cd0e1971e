"""Why a key can do nothing for a service, in words. Knows no screen."""

from __future__ import annotations

from devloop.protocol import RemoteStatus, ServiceStatus, State
from tui import attachments
from tui.states import next_mode


def why(action: str, status: ServiceStatus | None, remote: RemoteStatus | None) -> str:
    """For an action that the engine could not do with this service now; empty where there is nothing to say."""
    if status is None:
        return "there is no service"
    name = status.name
    match action:
        case "toggle_mode":
            return f"{name} has no other mode than {status.mode}"
        case "attach" | "leave" | "requests":
            return _unattachable(status, remote)
    if status.mode != "local":
        key = f": t brings it here, then {VERBS[action]}" if action in VERBS and next_mode(status) == "local" else ""
        return f"{name} does not run here, it is {status.mode}{key}"
    if action == "build":
        return f"{name} has no build; `build` in devloop.toml gives it one"
    if action in ("start", "stop") and status.state is State.STOPPING:
        return f"{name} is stopping"
    return ""


VERBS = {"restart": "r restarts it", "stop": "s stops it", "build": "b builds it"}


def _unattachable(status: ServiceStatus, remote: RemoteStatus | None) -> str:
    if remote is None:
        return "nothing to attach here: this project has no remote"
    if not attachments.possible(remote):
        kind = {"sandbox": "a sandbox", "ssh": "a host with an SSH server"}.get(remote.kind, remote.kind)
        return f"nothing to attach here: the remote is {kind}, not a cluster"
    if status.mode != "local":
        return f"{status.name} is {status.mode}: only what runs here can have the cluster's traffic"
    return f"{status.name} stands for no workload there: `workload` in devloop.toml says which"

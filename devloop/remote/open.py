"""From `[remote]` to what connects: the kubeconfig, the link, the agent's image and this machine's key.

The one place that knows how `model.Remote` is meant. It is imported early (the first connection starts as soon as it
can), so what is heavy is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from devloop.config.model import Remote, RemoteKind
from devloop.errors import UsageError
from devloop.paths import state_home

if TYPE_CHECKING:
    from devloop.remote.kubernetes.agent import KubernetesLink
    from devloop.remote.kubernetes.kubeconfig import Kubeconfig
    from devloop.remote.life import LiveLink

IMAGE_VARIABLE = "DEVLOOP_AGENT_IMAGE"
"""Names the agent's image for every project of this machine that does not name one itself."""


KEY_FILE = state_home(os.environ) / "devloop" / "id_ed25519"
"""The key that this user has at agents, made at first use. Never in a project: its folder may be shared or copied."""


def kubeconfig(remote: Remote) -> Kubeconfig:
    """The context that is meant. Reads files; PermanentError names what is missing, UsageError a remote without."""
    from devloop.remote.kubernetes.kubeconfig import Kubeconfig

    if remote.kind is not RemoteKind.KUBERNETES:
        raise UsageError(
            f"this project's remote is of kind {remote.kind.value}, and no cluster",
            hint="name a cluster by --context, or run this outside of the project",
        )
    return Kubeconfig(remote.kubeconfig, remote.context, remote.namespace)


def agent_image(remote: Remote, environ: Mapping[str, str] | None = None) -> str:
    """The agent's image: the project's, else DEVLOOP_AGENT_IMAGE's, else the default, which no registry has yet."""
    from devloop.remote.kubernetes.install import IMAGE

    return remote.agent_image or (os.environ if environ is None else environ).get(IMAGE_VARIABLE) or IMAGE


def kubernetes_link(remote: Remote) -> KubernetesLink:
    """A link into the remote's namespace, not started. Raises as `kubeconfig` does."""
    return link_by(kubeconfig(remote), remote)


def link_by(chosen: Kubeconfig, remote: Remote) -> KubernetesLink:
    """The same by a context that was read already."""
    from devloop.remote.kubernetes.agent import KubernetesLink

    image = agent_image(remote)
    return KubernetesLink(
        chosen, key_file=KEY_FILE, way=remote.link.value, image=image, direct=remote.direct, mesh=remote.mesh
    )


def host_link(remote: Remote) -> LiveLink:
    """A link to the remote's host by SSH, not started."""
    from devloop.remote.ssh import ssh_link

    if not remote.host:
        raise UsageError("this project's remote names no host", hint='add host = "…" to [remote]')
    return ssh_link(remote.host)

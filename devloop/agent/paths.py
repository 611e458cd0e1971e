"""Where the API has what attachments touch, and how the two sides find each other over SSH. Pure."""

from __future__ import annotations

import re

PROTOCOL = 5
"""The version of what an engine and the agent say to each other about attachments, of what a relayed connection's first
bytes mean, and of how an engine joins (`keys.py`). Whoever changes one of them raises it (`tests/unit/attach/
test_protocol.py` asks): two sides that differ say so, where they would lose connections."""
COMMAND = f"attachments {PROTOCOL}"
"""The SSH session in which an engine and the agent talk (`desk.py`)."""
SOFTWARE = f"devloop_{PROTOCOL}"
"""What the agent calls itself when an SSH connection begins (RFC 4253, 4.2). Until version 2 it was `devloop`."""
GOODBYE = "goodbye"
"""The SSH session in which an engine leaves for good: the agent forgets its key, and says how many are there, the asker
among them."""
STEPS = 100
"""More calls than any restoration takes: a bound, should somebody undo them as fast as they are made."""


def protocol_of(banner: str) -> int:
    """The version that an agent with this SSH identification speaks; 0: it is no agent's."""
    found = re.fullmatch(r"SSH-2\.0-devloop(?:_(\d{1,9}))?", banner.strip())
    return 0 if found is None else int(found[1] or 1)


def services(namespace: str) -> str:
    """The path of Services."""
    return f"/api/v1/namespaces/{namespace}/services"


def leases(namespace: str) -> str:
    """The path of leases."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def slices(namespace: str) -> str:
    """The path of EndpointSlices."""
    return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


GROUPS = {"rollouts": "argoproj.io/v1alpha1"}
"""Where in the API workloads are that have a size and are not Kubernetes' own."""


def workloads(namespace: str, kind: str) -> str:
    """The path of workloads that have a size; `kind` as deployments."""
    return f"/apis/{GROUPS.get(kind, 'apps/v1')}/namespaces/{namespace}/{kind}"


def scale(namespace: str, kind: str, name: str) -> str:
    """The path of a workload's size; `kind` as deployments."""
    return f"{workloads(namespace, kind)}/{name}/scale"


def listen_path(attachment: str, port: int) -> str:
    """What a developer's side listens for, by SSH's own means, to get Envoy's connections."""
    return f"devloop/{attachment}/{port}"

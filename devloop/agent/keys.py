"""Developers' keys, as the cluster has them: an immutable ConfigMap for each engine that joins. Pure; for both ends.

Its name holds the hash of the public key, and a random part that nobody knows before it is there. So nobody puts
another key under a name, whatever they may write, and nobody takes a name before its owner does. The agent reads the
name and the times, and nothing else of what such an object says.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

AGENT = "devloop-agent"
"""The ConfigMap in which the agent publishes its host key, and in one of a Deployment's the Deployment."""
HOST_KEY, POD_UID = "host-key", "pod-uid"
"""What is in it: the public half, as OpenSSH writes it, and of which pod it is."""
LABEL = "devloop.dev/developer-key"
SELECTOR = f"{LABEL}=true"
WHO = "devloop.dev/made-by"
"""Annotation: what the developer calls themself."""
LIFE = "devloop.dev/life-seconds"
"""Annotation: how long an entry is good for those who are not connected yet."""
LIFE_SECONDS = 3600
"""What devloop asks for. Whoever comes back later makes another entry."""
MOST_SECONDS = 24 * 3600
"""The agent takes none for longer."""
_NAME = re.compile(rf"{AGENT}-key-([0-9a-f]{{64}})-([0-9a-f]{{16}})")
_USER = re.compile(r"(?s).*/([0-9a-f]{16})")


def config_maps(namespace: str) -> str:
    """The path of ConfigMaps."""
    return f"/api/v1/namespaces/{namespace}/configmaps"


def entry_name(public: bytes, suffix: str) -> str:
    """The name of an entry for this key, which is in SSH's wire format."""
    return f"{AGENT}-key-{hashlib.sha256(public).hexdigest()}-{suffix}"


def fingerprint(name: str) -> str:
    """Of the key that an entry's name stands for, as `ssh-keygen -l` shows it; empty if it is no entry's name."""
    found = _NAME.fullmatch(name)
    return f"SHA256:{base64.b64encode(bytes.fromhex(found[1])).decode().rstrip('=')}" if found is not None else ""


def new_suffix() -> str:
    """The part of a name that nobody guesses."""
    return secrets.token_hex(8)


def user(who: str, suffix: str) -> str:
    """The SSH user name of whom this entry is for: what they call themselves, and which entry it is."""
    return f"{who}/{suffix}"


def suffix_of(username: str) -> str:
    """Which entry a user name is about; empty if about none."""
    found = _USER.fullmatch(username)
    return found[1] if found is not None else ""


def entry(public: bytes, suffix: str, who: str, pod: str, uid: str) -> dict[str, Any]:
    """The ConfigMap by which a developer joins the agent in this pod, with which Kubernetes removes it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": entry_name(public, suffix),
            "labels": {LABEL: "true", "app.kubernetes.io/managed-by": "devloop"},
            "annotations": {WHO: who, LIFE: str(LIFE_SECONDS)},
            "ownerReferences": [owned_by(pod, uid)],
        },
        "immutable": True,
    }


def owned_by(pod: str, uid: str) -> dict[str, str]:
    """An owner reference: the garbage collector removes what carries it, once this very pod is gone."""
    return {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}


def is_entry(metadata: Mapping[str, Any]) -> bool:
    """Whether an object of this metadata lets anybody in: an entry by its name and label, and not on its way out."""
    labels = metadata.get("labels") or {}
    named = _NAME.fullmatch(str(metadata.get("name"))) is not None
    return named and labels.get(LABEL) == "true" and not metadata.get("deletionTimestamp")


def age(metadata: Mapping[str, Any], now: datetime) -> float:
    """Seconds since the API server has made it; ValueError if that can't be read."""
    return (now - datetime.fromisoformat(str(metadata.get("creationTimestamp"))).astimezone(UTC)) / timedelta(seconds=1)


def over(metadata: Mapping[str, Any], now: datetime) -> bool:
    """Whether its time has passed. `now` is the API server's: clocks of others do not count."""
    said = str((metadata.get("annotations") or {}).get(LIFE, ""))
    life = min(int(said), MOST_SECONDS) if said.isdecimal() and len(said) < 10 else LIFE_SECONDS
    try:
        return age(metadata, now) > life
    except ValueError:
        return True


def host_key_of(config_map: Mapping[str, Any] | None, uid: str) -> str:
    """The host key that the pod with this uid has published, as text; empty if it has not yet."""
    data = (config_map or {}).get("data") or {}
    return str(data.get(HOST_KEY, "")) if uid and data.get(POD_UID) == uid else ""

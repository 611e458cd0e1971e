"""Whether who asks for an attachment may have it: what the API server has let somebody write says so.

Anybody whose key is known to the agent can ask for anything. What they may take is what they have written into the
cluster with rights of their own: the lease names the attachment, whole, and the key that it belongs to; the Service's
record names it among its holders. In the pods, where the Service is not changed, a marker does (`objects.marker`). A
lease alone gives no traffic: not of a Service that others have led here, and not of pods that have doors of others.
"""

from __future__ import annotations

import asyncio
import urllib.error
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from .objects import is_swapped, key_of, marker_name, marks, record, spec_of
from .paths import leases, services
from .presence import ClusterApi
from .spec import Spec
from .view import NotNowError, RefusedError

Document = dict[str, Any]


def missing(found: Document | None, spec: Spec, key: str) -> str:
    """Why this lease, or none, does not entitle the key to the attachment; empty if it does."""
    if found is None:
        return "no lease stands for it: who attaches has to be allowed to write one"
    if not key or key_of(found) != key:
        return "its lease belongs to another key"
    if spec_of(found) != spec:
        return "its lease is for something else"
    return ""


def is_holder(service: Document, spec: Spec) -> bool:
    """The Service leads here, and names this very attachment among its holders."""
    kept = record(service) if is_swapped(service) else None
    return kept is not None and any(each == spec for each in kept.specs if each.id == spec.id)


def has_marker(seen: Mapping[str, Document], spec: Spec, key: str) -> bool:
    """Among these Services, by name, is the marker of this very attachment in the pods, of this key."""
    found = seen.get(marker_name(spec))
    return found is not None and marks(found, spec, key)


async def marked(api: ClusterApi | None, spec: Spec, key: str) -> None:
    """The same as the API has it now. RefusedError if not; NotNowError if that can't be known."""
    found = await _find(api, services, marker_name(spec), "Services")
    if found is None or not marks(found, spec, key):
        raise RefusedError(
            f"no Service {marker_name(spec)} stands for it: who attaches in the pods has to be allowed to make one"
        )


async def lease(api: ClusterApi | None, name: str) -> Document | None:
    """A lease as the API has it now; None if there is none. RefusedError, NotNowError if that can't be known."""
    return await _find(api, leases, name, "leases")


async def _find(api: ClusterApi | None, kind: Callable[[str], str], name: str, called: str) -> Document | None:
    if api is None:
        raise RefusedError("the agent's pod has no service account")
    try:
        return await asyncio.to_thread(api.call, "GET", f"{kind(api.namespace)}/{name}")
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code == HTTPStatus.NOT_FOUND:
            return None
        if problem.code == HTTPStatus.FORBIDDEN:
            raise RefusedError(f"the agent may not see {called}: its Role devloop-agent-attach is missing") from problem
        raise NotNowError(f"the agent can't see {called}: {problem}") from problem
    except (OSError, HTTPException, ValueError) as problem:
        raise NotNowError(f"the agent can't see {called}: {problem}") from problem

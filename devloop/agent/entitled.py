"""Whether who asks for an attachment may have it: what the API server has let somebody write says so.

Anybody whose key is known to the agent can ask for anything. What they may take is what they have written into the
cluster with rights of their own: the lease names the attachment, whole, and the key that it belongs to; the Service's
record names it among its holders. A lease alone gives no traffic of a Service that others have led here.
"""

from __future__ import annotations

import asyncio
import urllib.error
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from .objects import is_swapped, key_of, record, spec_of
from .paths import leases
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


async def lease(api: ClusterApi | None, name: str) -> Document | None:
    """A lease as the API has it now; None if there is none. RefusedError, NotNowError if that can't be known."""
    if api is None:
        raise RefusedError("the agent's pod has no service account")
    try:
        return await asyncio.to_thread(api.call, "GET", f"{leases(api.namespace)}/{name}")
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code == HTTPStatus.NOT_FOUND:
            return None
        if problem.code == HTTPStatus.FORBIDDEN:
            raise RefusedError("the agent may not see leases: its Role devloop-agent-attach is missing") from problem
        raise NotNowError(f"the agent can't see the lease: {problem}") from problem
    except (OSError, HTTPException, ValueError) as problem:
        raise NotNowError(f"the agent can't see the lease: {problem}") from problem

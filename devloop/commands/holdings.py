"""Who holds what in a namespace, from the leases alone: for `devloop list` and `devloop leave --take-over`."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from devloop.agent import objects
from devloop.agent.spec import Spec
from devloop.remote.workload.references import Kind

LEASE = Kind("Lease", "leases", "apis/coordination.k8s.io/v1")
OURS = {"matchExpressions": [{"key": objects.LEASE_LABEL, "operator": "Exists"}]}
"""The selector of attachments' leases."""
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Holding:
    """One attachment, of anybody's."""

    spec: Spec
    over: float
    """Seconds since its lease ended; negative while it holds."""

    @property
    def target(self) -> str:
        """The Service, or the workload where no traffic is taken."""
        return self.spec.service or self.spec.workload

    def is_of(self, names: Collection[str]) -> bool:
        """Whether one of these is its Service, or its workload with or without the kind."""
        own = (self.spec.service, self.spec.workload, self.spec.workload.partition("/")[2])
        return any(each in names for each in own if each)

    @property
    def routes(self) -> str:
        """Which requests, for people; empty where none are taken."""
        return " or ".join(map(str, self.spec.routes)) if self.spec.service else ""

    def cell(self) -> str:
        """For a table: who, how, which requests, since when, and whether they are there."""
        gone = f", gone for {self.over:.0f} s" if self.over > 0 else ""
        which = f" {self.routes}" if self.routes else ""
        where = ", in its pods" if self.spec.way == "pods" else ""
        return f"{self.spec.who} {self.spec.kind}{which}{where} since {moment(self.spec.since)}{gone}"

    def sentence(self) -> str:
        """For a message."""
        which = f"{self.routes} of " if self.routes else ""
        gone = f", and has not been there for {self.over:.0f} s" if self.over > 0 else ""
        return f"{self.spec.who} holds {which}{self.target} ({self.spec.kind}) since {self.spec.since}{gone}"

    def document(self) -> Document:
        """For `--json`: the attachment as the lease has it, with its routes in words and whether it is alive."""
        return {
            **self.spec.document(),
            "routes_text": self.routes,
            "alive": self.over <= 0,
            "over": round(self.over, 1),
        }


def holdings(leases: Iterable[Document]) -> list[Holding]:
    """Every attachment, the oldest first."""
    return [Holding(spec, over) for spec, over in objects.holdings(leases, datetime.now(UTC))]


def nobodys(services: Iterable[Document], leases: Iterable[Document]) -> dict[str, bool]:
    """Services that still lead to an agent though there is no lease for them: all who held them have gone.

    And whether each says what it was, so that it can be put back.
    """
    used = {spec.service for each in leases if (spec := objects.spec_of(each)) is not None}
    return {
        name: objects.record(each) is not None or objects.is_broken(each)
        for each in services
        if objects.is_marked(each) and (name := each["metadata"]["name"]) not in used
    }


def moment(stamp: str) -> str:
    """A time of the API's, here: 11:00 of today, else 20 Nov 11:00. What is no time stays as it is."""
    try:
        at = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return stamp
    then, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%d %b %H:%M", then)

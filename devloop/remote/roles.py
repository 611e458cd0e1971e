"""The Roles that an administrator gives developers (`manifests/role-*.yaml`), and what to say where one is missing.

They add up: who attaches has the three before it, too. Which right is whose stands in `kubernetes/rights.py`; the API
server's own words name the right, so that any refusal can be answered with a Role (`hint`), wherever it comes up.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Role(StrEnum):
    """From the smallest to the largest."""

    LINK = "link"
    INGEST = "ingest"
    ATTACH = "attach"
    SELF_SERVICE = "self-service"

    @property
    def object_name(self) -> str:
        """Of the Role and its RoleBinding in the cluster."""
        return f"devloop-{self}"

    @property
    def smaller(self) -> tuple[Role, ...]:
        """Those that it adds to."""
        return tuple(Role)[: tuple(Role).index(self)]


SMALLEST = Role.LINK
FOR_WHAT = {
    Role.LINK: "connections",
    Role.INGEST: "variables and files of workloads",
    Role.ATTACH: "attach",
    Role.SELF_SERVICE: "an agent of one's own",
}
"""What each is for, for people."""

# "… is forbidden: User "ada" cannot patch resource "services" in API group "" in the namespace "shop"": so says the API
# server of Kubernetes whatever RBAC does not allow; webhooks have words of their own.
_FORBIDDEN = re.compile(
    r'cannot (?P<verb>[a-z]+) resource "(?P<resource>[a-z./-]+)" in API group "(?P<group>[a-z0-9.-]*)"'
)


def ask_for(role: Role) -> str:
    """What to do where it is missing."""
    return (
        f"It takes the Role {role.object_name}: an administrator applies what `devloop agent manifest --role {role} "
        "--role-only` prints."
    )


def of_refusal(text: str) -> Role | None:
    """The smallest Role that allows what an API server refuses with these words; None: it is none of devloop's."""
    found = _FORBIDDEN.search(text)
    if found is None:
        return None
    from .kubernetes.rights import role_with

    name = re.search(rf'{re.escape(found["resource"].partition("/")[0])}[a-z0-9.]* "([^"]+)" is forbidden', text)
    return role_with(found["group"], found["resource"], found["verb"], name[1] if name else "")


def hint(text: str) -> str | None:
    """What to do about a refusal in an API server's words; None where no Role is missing."""
    role = of_refusal(text)
    return ask_for(role) if role is not None else None

"""What `devloop doctor` has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: str
    """ok, warning or error."""
    text: str
    hint: str = ""
    missing: tuple[str, ...] = ()
    """Rights at the cluster that are not there, as in "create pods"."""
    remote: bool = False
    """It is about the remote, not about this machine."""

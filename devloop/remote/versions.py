"""An agent and an engine of different versions: what is said of it, in one place."""

from __future__ import annotations

from devloop.agent.paths import PROTOCOL


def unequal(theirs: int) -> tuple[str, str]:
    """What is wrong with an agent that speaks this version of the protocol, and what to do."""
    if theirs < PROTOCOL:
        what = "the agent is older than this devloop"
        hint = "`devloop agent uninstall` when nobody else uses it, and the next `up` makes it anew. "
        hint += "An administrator's: `devloop agent manifest`, applied again."
    else:
        what = "the agent is newer than this devloop"
        hint = "Update devloop: the agent of a namespace is shared by all who work in it."
    return f"{what} (it speaks version {theirs} of their protocol, this one {PROTOCOL})", hint

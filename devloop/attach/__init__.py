"""Attachments: the cluster's traffic reaches a local service.

`Attachments` is what the engine holds; `seam.py` has what it gives and is told. What is written into the cluster,
and how it is taken back, is in `devloop/agent`, because the agent has to do it when nobody else can.
"""

from devloop.agent.records import Request
from devloop.agent.spec import ALL, Header, Match, Route, Spec, personal

from .seam import AttachError, HeldError, Holding, LocalEnd, Phase, State, Wanted

__all__ = [
    "ALL",
    "AttachError",
    "Header",
    "HeldError",
    "Holding",
    "LocalEnd",
    "Match",
    "Phase",
    "Request",
    "Route",
    "Spec",
    "State",
    "Wanted",
    "personal",
]

"""What the core is told of a command that could not be carried out, so that it does not wait for an answer for ever."""

from __future__ import annotations

from devloop.core import commands as do
from devloop.core import events as ev


def failed(command: do.Command, failure: str, hint: str = "") -> ev.Event | None:
    """The event that answers this command in place of the one it promises; None if it promises none."""
    match command:
        case do.StartProcess(service, run):
            return ev.ProcessNotStarted(service, run, failure, hint)
        case do.StopProcess(service, run):
            # Its holder can't be asked: whatever it held ends with it.
            return ev.ProcessEnded(service, run, -9, 0, ())
        case do.OpenWorld(service):
            return ev.WorldFailed(service, failure, hint)
        case do.StartBuild(service, run):
            return ev.BuildEnded(service, run, failure)
        case do.ReloadProcess(service, run):
            return ev.ReloadEnded(service, run, failure)
        case do.StartProbes(service, run):
            return ev.NotReadyInTime(service, run, failure)
        case do.SetBackoff(service, run):
            return ev.BackoffEnded(service, run)
        case _:
            return None

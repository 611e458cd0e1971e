"""The tree of errors, drawn once.

Each error says what went wrong, where, and what to do next; its class carries the exit code that the
command line ends with, so that the mapping is in one place.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, whose import takes as long as half of the parser
if TYPE_CHECKING:
    from pathlib import Path


class DevloopError(Exception):
    """Anything that devloop itself reports. Shown on stderr without a traceback.

    `what` is a sentence without a full stop; `where` names the file, service or host, if there is one;
    `hint` says what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text


class UsageError(DevloopError):
    """The command line, or a request on the control socket, asks for something that does not exist."""

    exit_code = 2


class ConfigError(DevloopError):
    """devloop.toml can't be used as it is; `devloop.config.load` raises it with every problem at once."""

    exit_code = 2


class EngineError(DevloopError):
    """The engine is not there, is there already, or stopped answering."""


class UnansweredError(EngineError):
    """The engine is there, and does not answer."""

    def __init__(self, state: Path, pid: int | None, *, stopped: bool = False, obstacle: str = "") -> None:
        """`state` is its state folder; `stopped`: a signal has suspended it; `obstacle`: what lies in its place."""
        who = f"the engine (pid {pid})" if pid else "the engine"
        if stopped:
            what = f"{who} is suspended, by Ctrl-Z or a SIGSTOP"
            hint = f"`kill -CONT {pid}` lets it go on; `devloop down` ends it and its services"
        elif obstacle:
            what = f"{who} can't be reached: {state} is {obstacle}, and its state folder has to be there"
            hint = f"remove {obstacle}: the engine then makes its folder again; or `devloop down --force` ends it"
        else:
            what = f"{who} does not answer"
            hint = f"`devloop down --force` ends it and its services; see {state / 'engine.log'}"
        super().__init__(what, where=str(state.parent), hint=hint)
        self.pid = pid
        self.stopped = stopped


class ServiceError(DevloopError):
    """A service, build or command of the user's failed."""


class RemoteError(DevloopError):
    """The remote refused, or can't be reached."""

    exit_code = 3

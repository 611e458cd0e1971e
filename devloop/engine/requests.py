"""What clients may ask of the engine over the control socket: `devloop.protocol.METHODS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from devloop.config.model import Mode
from devloop.config.words import quoted, suggestion
from devloop.core import events as ev
from devloop.engine.asked import asked
from devloop.errors import RemoteError, UsageError
from devloop.local import environment

if TYPE_CHECKING:
    from devloop.engine.engine import Engine
    from devloop.engine.passthrough import Passthrough


MOST = 20_000
"""Log lines of one answer, for instance: a tenth of a second of the engine's time."""


class Requests:
    """Answers one request after the other for an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def answer(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Carry it out. Raises UsageError for what can't be asked, else what comes of it."""
        match method:
            case "status":
                return self._engine.snapshot().to_json()
            case "toggle":
                return {"mode": await self._toggle(self._service(params), params.get("mode"))}
            case "start":
                self._engine.dispatch(ev.StartRequested(self._names(params)))
            case "stop":
                self._engine.dispatch(ev.StopRequested(self._names(params)))
            case "restart" | "build":
                for name in self._names(params):
                    self._engine.dispatch(ev.RestartRequested(name, build=method == "build"))
            case "logs":
                names = params.get("services")
                chosen = None if names is None else self._names(params)
                lines = self._engine.logs.tail(chosen, _number(params, "tail", 100))
                return {
                    "lines": [line.to_json() for line in lines],
                    "earlier": self._engine.logs.count(chosen) - len(lines),
                }
            case "loops":
                loops = self._engine.recent_loops(self._service(params), _number(params, "limit", 50))
                return {"loops": [loop.to_json() for loop in loops]}
            case "env":
                return await self._env(self._service(params), bool(params.get("reveal", False)))
            case "enter":
                return await self._engine.enter(self._service(params))
            case "world":
                return self._world(self._service(params))
            case "reconnect":
                self._remote().side.wake()
            case "attach":
                dead = await self._remote().attach(self._service(params), asked(params))
                return {"taken_over": dead}
            case "leave":
                await self._remote().leave(self._service(params))
            case "move":
                force = bool(params.get("force", False))
                ended, left, notes = await self._remote().move(self._service(params), force=force)
                return {"ended": ended, "left": [each.to_json() for each in left], "notes": list(notes)}
            case "requests":
                found = self._remote().recent_requests(self._service(params), _number(params, "limit", 100))
                return {"requests": [each.to_json() for each in found]}
            case "reload_config":
                return {"changed": await self._engine.reload_config()}
            case "shutdown":
                self._engine.shut_down()
            case _:
                raise UsageError(f"there is no method {method!r}", where="control socket")
        return {}

    async def _toggle(self, name: str, wanted: str | None) -> str:
        life = self._engine.supervisor.services[name]
        modes = self._engine.modes(name)
        if wanted is None:
            mode = Mode(modes[1]) if life.mode is Mode.LOCAL else Mode.LOCAL
        else:
            try:
                mode = Mode(wanted)
            except (TypeError, ValueError):
                raise UsageError(f"there is no mode {wanted!r}", hint="local, remote or off") from None
        if mode is Mode.REMOTE and mode not in modes:
            why = "this project has no remote" if self._engine.remote is None else "the remote does not have it"
            raise UsageError(
                f"{name} can't be remote: {why}",
                where=str(self._engine.project.file),
                hint="it can be `local` or `off`",
            )
        remote = self._engine.remote
        if remote is None:
            self._engine.dispatch(ev.ModeRequested(name, mode))
        elif mode is Mode.LOCAL:
            await remote.before_local(name)
            self._engine.dispatch(ev.ModeRequested(name, mode))
            remote.moved(name)
        else:
            # Its traffic first, then its process; what stands in for a workload stops before that comes back.
            await self._leave(name, mode)
            async with remote.going(name):
                self._engine.dispatch(ev.ModeRequested(name, mode))
        return mode.value

    async def _env(self, name: str, reveal: bool) -> dict[str, Any]:
        variables = await self._engine.variables(name)
        shown = variables if reveal else map(environment.masked, variables)
        return {"variables": [variable.to_json() for variable in shown]}

    def _world(self, name: str) -> dict[str, Any]:
        remote = self._engine.remote
        return {"workload": "", "mounts": [], "notes": []} if remote is None else remote.world(name)

    def _remote(self) -> Passthrough:
        if self._engine.remote is None:
            raise UsageError("this project has no remote", where=str(self._engine.project.file))
        return self._engine.remote

    async def _leave(self, name: str, mode: Mode) -> None:
        """Give its traffic back; where that fails, the agent does it in time, and the toggle goes on."""
        try:
            await self._remote().leave(name, mode)
        except RemoteError as error:
            self._engine.notice("warning", error.what, hint=error.hint or "", service=name)

    def _service(self, params: Mapping[str, Any]) -> str:
        return self._known([params.get("service")])[0]

    def _names(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        names = params.get("services")
        if not isinstance(names, list):
            raise UsageError("`services` is a list of names", where="control socket")
        return self._known(names)

    def _known(self, names: Iterable[Any]) -> tuple[str, ...]:
        services = self._engine.project.services
        return expand(names, services, self._engine.project.groups)


def _number(params: Mapping[str, Any], name: str, default: int) -> int:
    found = params.get(name, default)
    if not isinstance(found, int) or found < 0:
        raise UsageError(f"`{name}` is a number, 0 or more", where="control socket")
    return min(found, MOST)


def expand(names: Iterable[Any], services: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Names of services and groups as names of services, each once. Raises UsageError for an unknown one."""
    found: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str):
            raise UsageError("a service is asked for by its name", where="control socket")
        if name in services:
            found[name] = None
        elif name in groups:
            found.update(dict.fromkeys(groups[name]))
        else:
            hint = suggestion(name, [*services, *groups], kind="services and groups")
            raise UsageError(f"there is no service {quoted(name)}", hint=hint)
    return tuple(found)

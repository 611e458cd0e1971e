"""All services of a project together: order of start and stop, modes, a changed configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from devloop.config.diff import diff
from devloop.config.model import Condition, Mode, Project, Service
from devloop.core import commands as do
from devloop.core import events as ev
from devloop.core.service import ServiceLife

_RESTARTS_FOR = frozenset({"command", "cwd", "env", "file_env", "ports", "build", "place", "tty"})
"""Fields that the process itself sees; a change of any other takes effect without a restart."""


class Supervisor:
    """Takes the project's events one by one; `handle` returns the commands that follow, in order."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.services = {name: self._life(spec) for name, spec in project.services.items()}
        self.stopping = False
        self._began = False
        self._finished = False
        self._leaving: set[str] = set()
        self._chosen: set[str] = set()
        self._all_chosen = False

    def handle(self, event: ev.Event, now: int) -> list[do.Command]:
        """The next step. `now` is monotonic nanoseconds and never goes back."""
        if not self._began:
            self._began = True
            for life in self.services.values():
                life.since = now
        out = self._dispatch(event, now)
        out += self._pass_on(now)
        return out

    def _life(self, spec: Service) -> ServiceLife:
        return ServiceLife(spec, has_remote=self.project.remote is not None)

    def _dispatch(self, event: ev.Event, now: int) -> list[do.Command]:
        match event:
            case ev.StartRequested(names):
                return self._start(names, now)
            case ev.StopRequested(names):
                return [c for name in self._dependents_first(names) for c in self.services[name].stop(now)]
            case ev.ModeRequested(name, mode):
                out = self._start_dependencies(name, now) if mode is Mode.LOCAL else []
                life = self.services[name]
                life.unmet = self._unmet(life.spec)
                return out + life.set_mode(mode, now)
            case ev.ProjectChanged(project):
                return self._change_project(project, now)
            case ev.ShutdownRequested():
                self.stopping = True
                return []
            case _:
                found = self.services.get(event.service)
                return [] if found is None else self._for_service(found, event, now)

    def _for_service(self, life: ServiceLife, event: ev.Event, now: int) -> list[do.Command]:
        match event:
            case ev.RestartRequested(_, cause, build):
                return [] if self.stopping else life.restart(now, cause, build=build)
            case ev.WorldOpened():
                return life.world_opened(now)
            case ev.WorldFailed(_, failure, hint):
                return life.world_failed(failure, hint, now)
            case ev.WorldChanged(_, reason):
                return life.world_changed(reason)
            case ev.FilesChanged(_, files, edited):
                return [] if self.stopping else life.files_changed(files, edited, now)
            case ev.FilesSettled():
                return life.files_settled(now)
            case ev.BuildEnded(_, run, failure):
                return life.build_ended(run, failure, now)
            case ev.ProcessStarted(_, run, pid, at):
                return life.process_started(run, pid, now if at is None else at)
            case ev.ProcessNotStarted(_, run, failure, hint):
                return life.process_not_started(run, failure, hint, now)
            case ev.ProcessEnded(_, run, code, left_behind, survivors, at):
                return life.process_ended(run, code, left_behind, survivors, now if at is None else at)
            case ev.BecameReady(_, run):
                return life.became_ready(run, now)
            case ev.NotReadyYet(_, run, failure):
                return life.not_ready_yet(run, failure)
            case ev.NotReadyInTime(_, run, failure):
                return life.not_ready_in_time(run, failure)
            case ev.PromptShown(_, run, prompt):
                return life.prompt_shown(run, prompt)
            case ev.PromptGone(_, run):
                return life.prompt_gone(run)
            case ev.NotAlive(_, run, failure):
                return life.not_alive(run, failure, now)
            case ev.ReloadEnded(_, run, failure):
                return life.reload_ended(run, failure, now)
            case ev.BackoffEnded(_, run):
                return life.backoff_ended(run, now)
        raise AssertionError(event)

    def _start(self, names: Iterable[str], now: int) -> list[do.Command]:
        if self.stopping:
            return []
        asked = set(names)
        wanted = self._with_dependencies(names)
        self._chosen |= set(wanted)
        self._all_chosen = self._all_chosen or self._chosen >= set(self.services)
        out: list[do.Command] = []
        for name in wanted:  # what others depend on first: whether it is on decides what they wait for
            life = self.services[name]
            life.unmet = self._unmet(life.spec)
            # One that is off is turned on where it was asked for by name; as a dependency it stays off.
            turned_on = name in asked and life.mode is Mode.OFF
            out += life.set_mode(Mode.LOCAL, now) if turned_on else life.start(now)
        return out

    def _start_dependencies(self, name: str, now: int) -> list[do.Command]:
        needed = self.project.services[name].depends_on
        return self._start([n for n in needed if self.services[n].mode is not Mode.OFF], now)

    def _pass_on(self, now: int) -> list[do.Command]:
        """What one service has become may let others start or, in a shutdown, stop."""
        out: list[do.Command] = []
        for name, life in tuple(self.services.items()):
            out += life.dependencies(self._unmet(life.spec), now)
            if name in self._leaving and life.gone:
                del self.services[name]
                self._leaving.discard(name)
                out.append(do.Forget(name))
        if self.stopping:
            for name, life in self.services.items():
                if life.wanted and all(self.services[d].gone for d in self._dependents(name)):
                    out += life.stop(now)
            if not self._finished and all(life.gone for life in self.services.values()):
                self._finished = True
                out.append(do.Finish())
        return out

    # The graph. The loader has made sure that it has no cycle and that every name exists.

    def _with_dependencies(self, names: Iterable[str]) -> list[str]:
        return _closure(names, lambda name: self.project.services[name].depends_on)

    def _dependents(self, name: str) -> list[str]:
        return [n for n, life in self.services.items() if name in life.spec.depends_on]

    def _dependents_first(self, names: Iterable[str]) -> list[str]:
        wanted = set(names)
        ordered = self._with_dependencies(name for name in names if name in self.project.services)
        return [name for name in reversed(ordered) if name in wanted]

    def _unmet(self, spec: Service) -> tuple[str, ...]:
        return tuple(
            name if condition is not Condition.COMPLETED else f"{name} to complete"
            for name, condition in spec.depends_on.items()
            if not self._is_met(name, condition)
        )

    def _is_met(self, name: str, condition: Condition) -> bool:
        life = self.services.get(name)
        if life is None or life.mode is not Mode.LOCAL:
            return True  # off: the user sees to it; remote: the cluster does
        return {
            Condition.STARTED: life.started,
            Condition.READY: life.ready,
            Condition.COMPLETED: life.completed,
        }[condition]

    def _change_project(self, project: Project, now: int) -> list[do.Command]:
        difference = diff(self.project, project)
        self.project = project
        out: list[do.Command] = []
        for name in difference.removed:
            self._leaving.add(name)
            out += self.services[name].stop(now)
        for name in difference.added:
            spec = project.services[name]
            if name in self._leaving:
                # It comes back while its old process still ends: the same life goes on.
                self._leaving.discard(name)
                out += self.services[name].respecify(spec, now, restart=False)
            else:
                self.services[name] = self._life(spec)
        for name, fields in difference.changed.items():
            life = self.services[name]
            spec = project.services[name]
            out += life.respecify(spec, now, restart=not _RESTARTS_FOR.isdisjoint(fields))
            if "mode" in fields:
                out += life.set_mode(spec.mode, now)
        if self._all_chosen:
            out += self._start([n for n in difference.added if self.services[n].mode is Mode.LOCAL], now)
        self._reorder(project.services)
        return out

    def _reorder(self, services: Mapping[str, Service]) -> None:
        order = {name: index for index, name in enumerate(services)}
        self.services = dict(sorted(self.services.items(), key=lambda item: order.get(item[0], len(order))))


def _closure(names: Iterable[str], neighbours: Callable[[str], Iterable[str]]) -> list[str]:
    """These and all that they lead to, the farthest first, each once."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in done:
            for other in neighbours(name):
                visit(other)
            done[name] = None

    for name in names:
        visit(name)
    return list(done)

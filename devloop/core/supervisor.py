"""All services of a project together: order of start and stop, modes, a changed configuration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from devloop.config.diff import diff
from devloop.config.model import Condition, Mode, Project, Service
from devloop.core import commands as do
from devloop.core import events as ev
from devloop.core.service import ServiceLife
from devloop.protocol import Cause, State

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
        self._chosen: dict[str, None] = {}
        self._ordered: list[str] = []
        self._seen: dict[str, tuple[int, dict[str, int]]] = {}
        """Service → its run when it was last looked at, and what its `restarts_with` had come to then."""
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
            case ev.RunDue():
                return [] if self.stopping else life.run_due(now)
            case ev.BackoffEnded(_, run):
                return life.backoff_ended(run, now)
        raise AssertionError(event)

    def _start(self, names: Iterable[str], now: int) -> list[do.Command]:
        if self.stopping:
            return []
        asked = set(names)
        wanted = self._with_dependencies(names)
        self._chosen |= dict.fromkeys(wanted)
        self._all_chosen = self._all_chosen or self._chosen.keys() >= set(self.services)
        out: list[do.Command] = []
        for name in wanted:  # what others depend on first: whether it is on decides what they wait for
            life = self.services[name]
            out += life.dependencies(self._unmet(life.spec), now)
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
        for name in self._order():
            life = self.services[name]
            unmet = (n for n, c in life.spec.depends_on.items() if not self._is_met(n, c))
            life.stuck = next(filter(None, map(self._stuck_at, unmet)), "")
            out += life.dependencies(self._unmet(life.spec), now)
            if life.spec.restarts_with and not self.stopping:
                out += self._follow(name, life, now)
            if name in self._leaving and life.gone:
                del self.services[name]
                self._ordered = []
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

    def _follow(self, name: str, life: ServiceLife, now: int) -> list[do.Command]:
        """Restart it if one of its `restarts_with` has been restarted, and is again what it waits for."""
        depends_on = life.spec.depends_on
        met = {n: self._is_met(n, depends_on[n]) for n in life.spec.restarts_with if n in self.services}
        now_at = {n: self.services[n].generation for n in met}
        run, known = self._seen.get(name, (-1, {}))
        if life.run != run or life.pending or not life.wanted or not life.starts:
            # It has just been started, or will be: with what there is now. What is not there yet counts when it is.
            before = {n: known.get(n, now_at[n]) for n in met}
            self._seen[name] = (life.run, {n: now_at[n] if met[n] else min(before[n], now_at[n]) for n in met})
            return []
        renewed = [n for n in met if now_at[n] != known.get(n, now_at[n])]
        if not renewed or not all(met[n] for n in renewed):
            return []
        self._seen[name] = (life.run, now_at)
        return life.restart(now, Cause.DEPENDENCY, build=False)

    def outcome(self, asked: Collection[str] | None = None) -> int | None:
        """The exit code once nothing runs and nothing will by itself; None until then.

        That is the first failure's, those that others depend on first; 0 if all are completed. Of `asked` (None: all
        that were started), tasks alone decide where they are all that was asked for: what they needed may still run.
        """
        names = [name for name in (asked or ()) if name in self.services]
        if not names or not all(self.services[name].spec.task for name in names):
            names = [name for name in self._chosen if name in self.services]
        # What is off by the file was never asked for; what was turned off by hand may be turned on again.
        lives = [
            each for each in map(self.services.__getitem__, names) if each.wanted or each.spec.mode is not Mode.OFF
        ]
        if self.stopping or not lives or not all(each.over and not each.watches for each in lives):
            return None
        causes = [self.services[name] for name in self._with_dependencies(each.spec.name for each in lives)]
        failures = [each.exit_status for each in causes if each.exit_status]
        return failures[0] if failures else int(any(each.stuck for each in lives))

    # The graph. The loader has made sure that it has no cycle and that every name exists.

    def _order(self) -> list[str]:
        """All that there is, dependencies first."""
        if len(self._ordered) != len(self.services):
            self._ordered = self._sorted()
        return self._ordered

    def _sorted(self) -> list[str]:
        ordered = [name for name in self._with_dependencies(self.project.services) if name in self.services]
        return [*ordered, *(name for name in self.services if name not in self.project.services)]

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
            self._blocker(name, condition)
            for name, condition in spec.depends_on.items()
            if not self._is_met(name, condition)
        )

    def _blocker(self, name: str, condition: Condition) -> str:
        """What is waited for, and why it does not come."""
        life = self.services[name]
        if life.state is State.WAITING:
            unmet = ((n, c) for n, c in life.spec.depends_on.items() if not self._is_met(n, c))
            for cause, its in unmet:
                if self._stuck_at(cause):
                    return f"{name}, which waits for {self._blocker(cause, its)}"
        elif self._stuck_at(name):
            reason = life.reason
            if life.state in (State.STOPPED, State.OFF):
                return f"{name}, which is stopped"
            return f"{name}, which {reason if reason.startswith(('exited', 'ended')) else f'failed: {reason}'}"
        return name if condition is not Condition.COMPLETED else f"{name} to complete"

    def _stuck_at(self, name: str) -> str:
        """The service that keeps this one from becoming what others wait for; "" if it may yet."""
        life = self.services[name]
        if life.state in (State.FAILED, State.CRASH_LOOP):
            return name if life.spec.schedule is None and not life.pending else ""
        if life.state in (State.STOPPED, State.OFF):
            return name
        # `_pass_on` has looked at what it waits for; asking again, down to the bottom, would double with each layer.
        return life.stuck if life.state is State.WAITING else ""

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
        self._ordered = []
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

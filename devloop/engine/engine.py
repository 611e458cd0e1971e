"""Wires everything: feeds the core with events, carries out its commands, and publishes what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from devloop import __version__
from devloop.agent.tasks import background
from devloop.config.load import load
from devloop.config.model import SECOND, Mode, Project
from devloop.config.problems import ConfigProblems
from devloop.config.words import quoted, suggestion
from devloop.control.server import ControlServer
from devloop.core import commands as do
from devloop.core import events as ev
from devloop.core.answers import failed
from devloop.core.service import ServiceLife
from devloop.core.supervisor import Supervisor
from devloop.engine.board import HISTORY, Board, unix
from devloop.engine.files import Files
from devloop.engine.guard import Guard
from devloop.engine.listening import Listening
from devloop.engine.notices import Notices
from devloop.engine.requests import Requests, expand
from devloop.engine.schedules import Schedules
from devloop.errors import ConfigError, DevloopError, EngineError, UsageError
from devloop.failures import more_open_files
from devloop.local import environment, sweep
from devloop.local.logs import LogBook, Sink
from devloop.local.process import RUN_VARIABLE, Holders
from devloop.local.runner import ServiceRunner
from devloop.local.terminal import ServiceTerminal
from devloop.metrics.store import LoopStore
from devloop.protocol import (
    Loop,
    Outcome,
    RemoteStatus,
    RequestBatch,
    ServiceStatus,
    Snapshot,
    StopProgress,
    Variable,
)
from devloop.state import StateFolder

if TYPE_CHECKING:
    from devloop.engine.passthrough import Passthrough


class LogSink(Sink, Protocol):
    """A sink that is told whose lines it gets."""

    def attach(self, book: LogBook) -> None:
        """Called in the event loop, before the first line."""


SPARE = 16
"""Descriptors that an engine must have left once it is up: for a client, and a service or two."""


class Engine:
    """One project's engine. `run` is its whole life; the holders are open before it, and closed by it."""

    def __init__(self, project: Project, state: StateFolder, environ: Mapping[str, str], holders: Holders) -> None:
        self.project = project
        self.environ = environ
        self.supervisor = Supervisor(project)
        self.logs: LogBook
        self.sink: LogSink | None = None
        """Who takes every line: `up --headless`, in this process. Set before `run`."""
        self.state = state
        self._started_at = time.time_ns()
        self.holders = holders
        self._runners: dict[str, ServiceRunner] = {}
        self._server: ControlServer
        self._store: LoopStore
        self._board = Board()
        self._listening = Listening()
        self.remote: Passthrough | None = None
        """The remote half, if the project has one."""
        self._requests = Requests(self)
        self._notices = Notices(lambda notice: self._server.publish(notice))
        self._files = Files(project, self.dispatch, lambda: self.task(self.reload_config()), self._notices.say)
        self._backoffs: dict[str, asyncio.TimerHandle] = {}
        self._schedules = Schedules(lambda service: self.dispatch(ev.RunDue(service)), environ)
        self.on_status: Callable[[ServiceStatus], None] | None = None
        """Called when there is news of a service: for `up --headless` too."""
        self.on_over: Callable[[int], None] | None = None
        """Called, with the exit code, when nothing runs and nothing will by itself any more."""
        self._asked: tuple[str, ...] | None = None
        self._survivors: dict[str, tuple[str, ...]] = {}
        self._config_error = ""
        self._events: deque[ev.Event] = deque()
        self._feeding = False
        self._dirty: dict[str, None] = {}
        self._unserved: dict[str, Loop] = {}
        """Service → its newest loop, until the first request is answered."""
        self._finished = asyncio.Event()
        self._idle = False
        self._leaving = False
        self._awaited: list[tuple[str, asyncio.Event]] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, services: Sequence[str] | None, up: Callable[[], None], *, idle: bool = False) -> None:
        """Start these services (None: all that are local) and live until the shutdown is complete.

        `idle` is for who wants the remote alone: nothing is started or watched. `up` is called once clients can
        connect. Raises EngineError if the project has an engine already.
        """
        asyncio.get_running_loop().set_exception_handler(self._notices.fault)
        self._idle = idle
        chosen = None if services is None else expand(services, self.project.services, self.project.groups)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.holders.close)
            self.state.create()
            self.state.lock(self.project.file)
            stack.callback(self.state.unlock)
            swept = sweep.sweep(self.state.processes)
            sweep.note(self.state.processes, self.holders.run_id)
            stack.callback(self._forget_processes)
            _raise_descriptor_limit()
            self.logs = LogBook(
                self.state.logs,
                self._logged,
                keep=self.project.logs_kept,
                tell=self._notices.warn_from_thread(),
                sink=self.sink,
            )
            stack.callback(self.logs.close)
            if self.sink is not None:
                self.sink.attach(self.logs)
            self._server = ControlServer(self.state.socket, self)
            await self._server.start()
            stack.push_async_callback(self._server.close)
            self._store = LoopStore(self.state.database, self._notices.from_thread())
            stack.callback(self._store.close)
            if self.project.remote is not None:
                from devloop.engine.passthrough import Passthrough  # a project without a remote does not pay for it

                self.remote = Passthrough(self, self.project.remote)
                stack.push_async_callback(self.remote.close)
            stack.push_async_callback(self._wind_up)
            self.task(self._guard().run())
            stack.callback(self._listening.close)
            self.task(self._listening.follow(self.supervisor.services.values, self._published, self.publish_one))
            self._remember_history()
            if self.remote is not None:
                # The first connection is made side by side with the services' start.
                self.remote.start(connect=not self._idle)
            if swept:
                self.notice("warning", f"ended {swept} processes that an engine which was killed had left")
            _check_descriptors()
            up()
            if self._idle:
                await self._finished.wait()
                return
            self.task(self._files.watch(self.project))
            names = [n for n, s in self.project.services.items() if s.mode is Mode.LOCAL]
            self._asked = chosen
            self.dispatch(ev.StartRequested(tuple(names) if chosen is None else chosen))
            await self._finished.wait()

    def _forget_processes(self) -> None:
        if not self.state.lost:  # else the record is another engine's, or gone
            sweep.forget(self.state.processes)

    def _guard(self) -> Guard:
        def again() -> None:
            sweep.note(self.state.processes, self.holders.run_id)
            self._store.begin_again()

        return Guard(
            self.state,
            self.project.file,
            self._server,
            notice=lambda level, text, hint: self.notice(level, text, hint=hint),
            again=again,
            end=self.shut_down,
        )

    async def _wind_up(self) -> None:
        await self._files.close()
        self._schedules.close()
        for timer in self._backoffs.values():
            timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners.values():
            await runner.close()

    # The core: events in, commands out.

    def dispatch(self, event: ev.Event) -> None:
        """Feed the core, and carry out what follows; events that come of that are fed in their turn.

        Never raises: a command that can't be carried out is told to the user, and answered as having failed.
        """
        self._events.append(event)
        if self._feeding:
            return  # called by a command below: the loop there takes it
        self._feeding = True
        try:
            while self._events:
                self._feed(self._events.popleft())
        finally:
            self._feeding = False
        self._publish_statuses()

    def _feed(self, event: ev.Event) -> None:
        if isinstance(event, ev.ProcessEnded) and event.survivors:
            self._survivors[event.service] = event.survivors
        try:
            commands = self.supervisor.handle(event, time.monotonic_ns())
        except Exception as problem:
            self._fault(f"the event {event!r} was not handled", problem)
            return
        for command in commands:
            try:
                self._carry_out(command)
            except Exception as problem:
                failure, hint = str(problem) or type(problem).__name__, ""
                if isinstance(problem, DevloopError):
                    failure, hint = problem.what, problem.hint or ""
                else:
                    self._fault(f"{command!r} was not carried out", problem)
                answer = failed(command, failure, hint)
                if answer is not None:
                    self._events.append(answer)
                elif isinstance(problem, DevloopError):
                    self.notice("error", str(problem), hint=hint)

    def _fault(self, message: str, problem: Exception) -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": message, "exception": problem})

    def _carry_out(self, command: do.Command) -> None:
        match command:
            case do.StartProcess(service, run):
                self._runner(service).start_process(run)
            case do.StopProcess(service, run):
                self._set_gate(service)  # before the process hears of it: from here on, connections wait
                self._runner(service).stop_process(run)
            case do.OpenWorld(service):
                assert self.remote is not None
                self.remote.side.here.open_world(service)
            case do.StartBuild(service, run):
                self._runner(service).start_build(run)
            case do.CancelBuild(service):
                self._runner(service).cancel_build()
            case do.EndBuildServers(service):
                self._runner(service).end_build_servers()
            case do.ReloadProcess(service, run):
                self._runner(service).reload_process(run)
            case do.StartProbes(service, run):
                self._runner(service).start_probes(run)
            case do.HoldProbes(service):
                self._runner(service).hold_probes(True)
            case do.ReleaseProbes(service):
                self._runner(service).hold_probes(False)
            case do.StopProbes(service):
                self._runner(service).stop_probes()
            case do.SetBackoff(service, run, at):
                self._clear_backoff(service)
                delay = max(0, at - time.monotonic_ns()) / SECOND
                self._backoffs[service] = asyncio.get_running_loop().call_later(
                    delay, self.dispatch, ev.BackoffEnded(service, run)
                )
            case do.ClearBackoff(service):
                self._clear_backoff(service)
            case do.SetSchedule(service):
                schedule = self.supervisor.services[service].spec.schedule
                assert schedule is not None
                self._schedules.set(service, schedule)
            case do.ClearSchedule(service):
                self._schedules.clear(service)
            case do.IgnoreFiles(service, files):
                self._files.watcher.quarantine(service, files)
            case do.WatchAgain(service):
                self._files.watcher.release(service)
            case do.PublishStatus(service):
                self._dirty[service] = None
            case do.RecordLoop():
                self._record(command)
            case do.Tell(level, service, text, hint):
                self.notice(level, text, hint=hint, service=service)
                self.logs.say(service, text)
            case do.Forget(service):
                self._forget(service)
            case do.Finish():
                self._finished.set()

    def _runner(self, service: str) -> ServiceRunner:
        runner = self._runners.get(service)
        life = self.supervisor.services.get(service)  # None: it has just been forgotten
        if runner is None:
            assert life is not None
            own = self.own_variables(service)
            around = None if self.remote is None else self.remote.around(service)
            arrived = self._server.terminal_arrived
            runner = ServiceRunner(
                life.spec, self.holders, self.logs, self.environ, own, self.dispatch, around, arrived
            )
            self._runners[service] = runner
        if life is not None:
            runner.spec = life.spec
        return runner

    def own_variables(self, service: str) -> dict[str, str]:
        """What devloop adds to a service's environment."""
        return {RUN_VARIABLE: self.holders.run_id, **environment.own(self.project.name, service)}

    def _clear_backoff(self, service: str) -> None:
        timer = self._backoffs.pop(service, None)
        if timer is not None:
            timer.cancel()

    def _forget(self, service: str) -> None:
        runner = self._runners.pop(service, None)
        if runner is not None:
            self.task(runner.close())
        self._schedules.clear(service)
        self.logs.forget(service)
        self._server.publish_snapshot()

    def _record(self, command: do.RecordLoop) -> None:
        first = min(command.stamps.values())
        stamps = {phase: at - first for phase, at in command.stamps.items()}
        files, detail = command.files[:100], command.detail
        loop = Loop(0, command.service, command.cause, command.outcome, unix(first), stamps, files, detail)
        loop = self._store.add(loop)
        self._board.remember([loop])
        self._unserved.pop(loop.service, None)
        if loop.outcome is Outcome.OK:
            self._unserved[loop.service] = loop
        self._dirty[command.service] = None
        self._server.publish(loop)

    def _remember_history(self) -> None:
        for name in self.project.services:
            self._board.remember(self._store.recent(name, HISTORY))

    # Configuration.

    async def reload_config(self) -> list[str]:
        """Put the devloop.toml on disk in force; if it is broken, say so and keep the one that is.

        Returns the services that were added, removed or changed.
        """
        try:
            project = await asyncio.to_thread(load, self.project.file, self.environ)
        except ConfigError as error:
            self._config_error = str(error)
            # What would mend it may be a file that is not part of the project yet.
            await self._files.watch(self.project, error.files if isinstance(error, ConfigProblems) else ())
            self.notice("error", f"{self.project.file.name} is broken; the running state is kept", hint=str(error))
            self._server.publish_snapshot()
            return []
        before, self.project = self.project, project
        self.logs.keep(project.logs_kept)
        had_error, self._config_error = bool(self._config_error), ""
        changed = [
            name
            for name in {**before.services, **project.services}
            if before.services.get(name) != project.services.get(name)
        ]
        if self.remote is not None:
            self.remote.reconfigure(project)
        self.dispatch(ev.ProjectChanged(project))
        if (before.remote, before.network) != (project.remote, project.network):
            self.notice("warning", "[remote] has changed; that takes effect when devloop is restarted")
        if changed:
            self.notice("info", f"{project.file.name}: {', '.join(changed)} changed")
        if changed or had_error:
            self._server.publish_snapshot()
        await self._files.watch(project)
        return changed

    # What clients see.

    def snapshot(self) -> Snapshot:
        """The whole state."""
        return Snapshot(
            project=self.project.name,
            root=str(self.project.root),
            file=str(self.project.file),
            engine_pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            services=tuple(map(self.status, self.supervisor.services.values())),
            notices=tuple(self._notices.kept),
            remote=None if self.remote is None else self.remote.status(),
            stopping=self.supervisor.stopping,
            config_error=self._config_error,
        )

    def status(self, life: ServiceLife) -> ServiceStatus:
        """All that there is to show of one service."""
        status = self._schedules.decorated(self._board.status(life))
        if self.remote is None:
            return replace(status, published=self._published(life))
        return self.remote.decorated(status, life)

    def _published(self, life: ServiceLife) -> dict[str, int]:
        """The ports of localhost that lead to it now."""
        return self._listening.of(life) if self.remote is None else self.remote.side.here.published(life.spec.name)

    def modes(self, service: str) -> tuple[str, ...]:
        """Those that a service can have, in the order in which a key goes through them."""
        return self.remote.modes(service) if self.remote is not None else (Mode.LOCAL.value, Mode.OFF.value)

    async def variables(self, service: str) -> list[Variable]:
        """The environment that a service's next process gets. Raises DevloopError if its workload can't be read."""
        spec, own = self.project.services[service], self.own_variables(service)
        if self.remote is None:
            return environment.resolve(spec, self.environ, own)
        here = self.remote.side.here
        workload = await here.read_variables(service)
        return here.adapted(service, environment.resolve(spec, self.environ, own, workload))

    async def enter(self, service: str) -> dict[str, Any]:
        """What it takes to run a command as this service sees the world. Raises DevloopError."""
        pid = None if self.remote is None else await self.remote.side.here.enter(service)
        spec = self.project.services[service]
        found = {each.name: each.value for each in await self.variables(service)}
        return {"pid": pid, "cwd": str(spec.cwd), "env": found}

    def recent_loops(self, service: str, count: int) -> list[Loop]:
        """The last loops of a service, oldest first, those of earlier engines too."""
        return self._store.recent(service, count)

    def terminal(self, service: str) -> ServiceTerminal:
        """A service's terminal. Raises UsageError if there is no such service."""
        if service not in self.supervisor.services:
            hint = suggestion(service, self.supervisor.services, kind="services")
            raise UsageError(f"there is no service {quoted(service)}", hint=hint)
        return self._runner(service).terminal

    async def call(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A request from the control socket."""
        return await self._requests.answer(method, params)

    def shut_down(self) -> None:
        """Stop everything in order; `run` returns when that is done."""
        if self.supervisor.stopping or self._leaving:
            return
        if self.remote is not None and self.remote.holds:
            self._leaving = True
            self.task(self._leave())
        else:
            self._stop_all()

    async def _leave(self) -> None:
        """Traffic goes back to the original pods before the services that answer it stop."""
        assert self.remote is not None
        try:
            await self.remote.leave_all()
        finally:
            self._stop_all()

    def _stop_all(self) -> None:
        self.dispatch(ev.ShutdownRequested())
        self._server.publish_snapshot()

    def abandon(self) -> None:
        """Don't wait for an orderly end: the holders end what is left within seconds."""
        self._finished.set()

    def notice(self, level: str, text: str, *, hint: str = "", service: str | None = None) -> None:
        """Tell a person something."""
        self._notices.say(level, text, hint, service)

    def _publish_statuses(self) -> None:
        self._tell_gone()
        dirty, self._dirty = self._dirty, {}
        for name in dirty:
            life = self.supervisor.services.get(name)
            if life is None:
                continue
            try:
                self._set_gate(name)
                status = self.status(life)
                self._server.publish(status)
                if self.on_status is not None:
                    self.on_status(status)
            except Exception as problem:
                self._fault(f"what is new of {name} was not told", problem)
        if self.on_over is not None and (code := self.supervisor.outcome(self._asked)) is not None:
            over, self.on_over = self.on_over, None
            over(code)
        if self.supervisor.stopping and dirty:
            alive = tuple(name for name, life in self.supervisor.services.items() if not life.gone)
            self._server.publish(StopProgress(alive, dict(self._survivors), self._finished.is_set()))

    def publish(self, event: RemoteStatus | RequestBatch) -> None:
        """Tell clients."""
        self._server.publish(event)

    def publish_one(self, service: str) -> None:
        """Something that clients see of a service has changed, besides its state."""
        self._dirty[service] = None
        self._publish_statuses()

    def publish_all(self) -> None:
        """The same of all services."""
        self._dirty.update(dict.fromkeys(self.supervisor.services))
        self._publish_statuses()

    def served(self, service: str, at: int) -> None:
        """A service has answered a request, at this monotonic time: the last stamp of the loop before."""
        loop = self._unserved.pop(service, None)
        if loop is not None:
            loop = replace(loop, stamps={**loop.stamps, "served": max(0, unix(at) - loop.started_at)})
            self._store.add(loop)
            self._board.amend(loop)
            self._server.publish(loop)
            self.publish_one(service)

    async def until_gone(self, service: str) -> None:
        """Wait until nothing of a service runs here."""
        gone = asyncio.Event()
        self._awaited.append((service, gone))
        self._tell_gone()
        await gone.wait()

    def _tell_gone(self) -> None:
        for service, event in self._awaited:
            life = self.supervisor.services.get(service)
            if life is None or life.gone:
                event.set()
        self._awaited = [each for each in self._awaited if not each[1].is_set()]

    def _set_gate(self, service: str) -> None:
        life = self.supervisor.services.get(service)
        if self.remote is not None and life is not None:
            self.remote.gate(life)

    def _logged(self, _: str) -> None:
        self._server.logs_arrived()

    def task(self, work: Coroutine[Any, Any, object]) -> None:
        """Have this done meanwhile; it is cancelled at the end."""
        task = background(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _raise_descriptor_limit() -> None:
    """As many descriptors as this user may have. The holders, and so the services, keep the usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses what is above OPEN_MAX
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check_descriptors() -> None:
    """Raises EngineError if clients and services would find no descriptor left."""
    spare: list[int] = []
    try:
        spare.extend(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(SPARE))
    except OSError:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise EngineError(
            f"the limit of open files is too low for an engine: {limit}", hint=more_open_files()
        ) from None
    finally:
        for fd in spare:
            os.close(fd)


def load_project(file: Path, environ: Mapping[str, str], services: Sequence[str]) -> Project:
    """The project, with the names that were asked for checked. Raises ConfigError or UsageError."""
    project = load(file, environ)
    if not project.services:
        raise UsageError("the project has no services", where=str(file), hint="add a [services.NAME]")
    expand(services, project.services, project.groups)
    return project

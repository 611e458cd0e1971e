"""Carries out, for one service, what the core asks: processes, builds, reloads and probes.

What comes of it is told as events of `devloop.core.events`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol

from devloop.agent.tasks import background
from devloop.config.model import SECOND, Command, ExecCheck, LogCheck, Probe, ReloadKind, Service
from devloop.config.shell import complaint
from devloop.core import events as ev
from devloop.errors import DevloopError
from devloop.local import environment, ports, probes
from devloop.local.logs import BUILD, DEVLOOP, ERR, OUT, LogBook, PipeReader
from devloop.local.process import Ended, Holder, Holders
from devloop.local.prompts import PromptWatch
from devloop.local.terminal import ServiceTerminal, Wiring
from devloop.protocol import Variable

CANCEL_TIMEOUT = 0.5
"""Seconds that a superseded build has to end by itself."""
RELOAD_TIMEOUT = 60.0
"""Seconds that the command of `reload = "exec: …"` may take."""

Tell = Callable[[ev.Event], None]


class Run:
    """One process from its start to its end: a job's listener, with its pipes."""

    def __init__(
        self,
        runner: ServiceRunner,
        streams: tuple[str, str] | None,
        started: Callable[[int, int], None],
        failed: Callable[[str, str], None],
        ended: Callable[[Ended], None],
        wiring: Wiring | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """`wiring` is the service's own process's, in place of `streams`. All else has an input that is at its end."""
        self._runner = runner
        self._keep = keep
        self._readers = [PipeReader(runner.logs, runner.name, stream) for stream in streams or ()]
        self._wiring = wiring
        self._started = started
        self._failed = failed
        self._ended = ended

    @property
    def output(self) -> tuple[int, int] | None:
        """Descriptors for its stdout and stderr; None if nobody reads them."""
        if self._wiring is not None:
            return self._wiring.output
        return (self._readers[0].write_end, self._readers[1].write_end) if self._readers else None

    @property
    def stdin(self) -> int | None:
        """A descriptor for its input; None: /dev/null."""
        return None if self._wiring is None else self._wiring.stdin

    def handed_over(self) -> None:
        """The descriptors are with the holder."""
        if self._wiring is not None:
            self._wiring.handed_over()
        for reader in self._readers:
            reader.handed_over()

    @property
    def closed(self) -> bool:
        """Nobody holds the other ends of its pipes any more."""
        return all(reader.closed for reader in self._readers)

    def close(self) -> None:
        """Stop reading."""
        if self._wiring is not None:
            self._wiring.close()
        for reader in self._readers:
            reader.close()

    def job_started(self, pid: int, at: int) -> None:
        """See JobListener."""
        self._started(pid, at)

    def job_failed(self, error: str, hint: str) -> None:
        """See JobListener."""
        self.close()
        self._failed(error, hint)

    def job_ended(self, ended: Ended) -> None:
        """See JobListener. What it printed last is read before its end is told.

        With `keep`, a server that it has left may hold the pipes: these stay open, or the server dies of printing.
        """
        if self._keep:
            for reader in self._readers:
                reader.drain()
            self._runner.left_open(self)
        else:
            self.close()
        self._ended(ended)


class Surroundings(Protocol):
    """What a service has of its remote, where its project has one."""

    def variables(self) -> Iterable[Variable]:
        """Its workload's."""

    def adapted(self, variables: Iterable[Variable]) -> list[Variable]:
        """All of its variables, so that they are right in its network."""

    def starts(self) -> None:
        """A process of it is about to start: what has its ports is to let go of them."""

    def connect(self) -> probes.Connect | None:
        """Connects into its network; None if that is the host's."""


class ServiceRunner:
    """One service's processes. `own` are the variables that devloop itself sets."""

    def __init__(
        self,
        spec: Service,
        holders: Holders,
        logs: LogBook,
        host: Mapping[str, str],
        own: Mapping[str, str],
        tell: Tell,
        surroundings: Surroundings | None = None,
        arrived: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`arrived` is told when `terminal` has something new."""
        self.terminal = ServiceTerminal(spec.name, arrived)
        self.spec = spec
        self.name = spec.name
        self.logs = logs
        self._holders = holders
        self._host = host
        self._own = own
        self._tell = tell
        self._surroundings = surroundings
        self._numbers = itertools.count(1)
        self._started_run = 0
        self._matched_run = 0
        self._build: str | None = None
        self._complained: set[str] = set()
        self._left_open: list[Run] = []
        """Builds that have ended, whose servers may still print."""
        self._build_over = asyncio.Event()
        self._build_over.set()
        self._held = False
        self._watch: PromptWatch | None = None
        self._probing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Commands of the core.

    def start_process(self, run: int) -> None:
        """See devloop.core.commands.StartProcess."""
        spec = self.spec
        if self._surroundings is not None:
            self._surroundings.starts()
        for name, port in spec.ports.items():
            if self._connect is None and ports.taken(port):
                who, hint = ports.holder_of(port)
                failure = f"port {port} ({name}) is taken by {who}"
                self._tell(ev.ProcessNotStarted(spec.name, run, failure, hint))
                return

        def started(pid: int, at: int) -> None:
            self._started_run = run
            self._tell(ev.ProcessStarted(spec.name, run, pid, at))
            if self._matched_run == run:
                self._tell(ev.BecameReady(spec.name, run))

        def failed(error: str, hint: str) -> None:
            self._tell(ev.ProcessNotStarted(spec.name, run, error, hint))

        def ended(how: Ended) -> None:
            if self._watch is not None:
                self._watch.close()
            self._tell(ev.ProcessEnded(spec.name, run, how.code, how.left_behind, how.survivors, how.at))

        if spec.ready is not None and isinstance(spec.ready.check, LogCheck):
            # Before the start, so that no line is missed.
            self.logs.when(spec.name, spec.ready.check.pattern, lambda: self._matched(run))
        self.terminal.reads_nothing = spec.task and not spec.tty
        self.terminal.on_interrupt = lambda: self._holder.signal(f"main-{run}", signal.SIGINT, group=True)
        if self.terminal.reads_nothing:
            # Its input is at its end: a task that asks a question fails at once, and does not wait for ever.
            listener = Run(self, (OUT, ERR), started, failed, ended)
        else:
            self._watch_prompts(run)
            wiring = Wiring(self.terminal, self.logs, (OUT, ERR), tty=spec.tty)
            listener = Run(self, None, started, failed, ended, wiring)
        self._start(f"main-{run}", spec.command, listener, main=True, tty=spec.tty)

    def _watch_prompts(self, run: int) -> None:
        def shown(prompt: str) -> None:
            self._tell(ev.PromptShown(self.name, run, prompt))

        def gone() -> None:
            self._tell(ev.PromptGone(self.name, run))

        self._watch = PromptWatch(self.spec.command.text, self.environment(), shown, gone)
        self.terminal.on_output, self.terminal.on_typed = self._watch.printed, self._watch.typed

    def _matched(self, run: int) -> None:
        """The line that means ready was printed; perhaps before the holder's word that the process runs."""
        self._matched_run = run
        if self._started_run == run:
            self._tell(ev.BecameReady(self.name, run))

    def stop_process(self, run: int) -> None:
        """See StopProcess."""
        stop = self.spec.stop
        self._holder.stop(f"main-{run}", stop.signal, stop.timeout / SECOND, group=stop.group)

    def start_build(self, run: int) -> None:
        """See StartBuild. Waits for the end of one that was cancelled: both write the same files."""
        assert self.spec.build is not None
        job = self._build = f"build-{run}-{next(self._numbers)}"
        self._spawn_task(self._run_build(job, run, self.spec.build))

    def cancel_build(self) -> None:
        """See CancelBuild."""
        job, self._build = self._build, None
        if job is not None and job in self._holder.jobs:
            self._holder.stop(job, signal.SIGTERM, CANCEL_TIMEOUT, group=True)

    def end_build_servers(self) -> None:
        """See EndBuildServers."""
        self._holder.dismiss(self.spec.stop.timeout / SECOND)

    def left_open(self, run: Run) -> None:
        """A build has ended, and what it has left may print on."""
        self._left_open = [each for each in (*self._left_open, run) if not each.closed]

    def reload_process(self, run: int) -> None:
        """See ReloadProcess."""
        how = self.spec.reload
        if how.kind is ReloadKind.SIGNAL:
            self._holder.signal(f"main-{run}", how.signal)
            # Told from the loop, as everything else is: the core is still at its last event.
            asyncio.get_running_loop().call_soon(self._tell, ev.ReloadEnded(self.name, run))
        else:
            assert how.command is not None
            self._spawn_task(self._run_reload(run, how.command))

    def start_probes(self, run: int) -> None:
        """See StartProbes."""
        self.stop_probes()
        if self.spec.ready is None:
            self._tell(ev.BecameReady(self.name, run))  # before its end can be told
        self._probing = self._spawn_task(self._probe(run, self.spec.ready, self.spec.live))

    def hold_probes(self, held: bool) -> None:
        """See HoldProbes and ReleaseProbes."""
        self._held = held

    def stop_probes(self) -> None:
        """See StopProbes."""
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    # What others ask.

    def environment(self) -> dict[str, str]:
        """The variables that a process of this service gets."""
        return {v.name: v.value for v in self.resolved()}

    def resolved(self) -> list[Variable]:
        """The same with where each comes from."""
        around = self._surroundings
        workload = around.variables() if around is not None else ()
        found = environment.resolve(self.spec, self._host, self._own, workload)
        return found if around is None else around.adapted(found)

    async def close(self) -> None:
        """End what is left, and the holder with it."""
        self.logs.never_mind(self.name)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for run in self._left_open:
            run.close()
        self._holders.release(self.name)

    # How.

    @property
    def _connect(self) -> probes.Connect | None:
        return self._surroundings.connect() if self._surroundings else None

    @property
    def _holder(self) -> Holder:
        return self._holders.get(self.name)

    def _start(
        self, job: str, command: Command, listener: Run, *, main: bool = False, tty: bool = False, keep: bool = False
    ) -> None:
        why = complaint(command.argv, command.text)
        if why and why not in self._complained:
            self._complained.add(why)
            self._say(why)
        output = listener.output
        null = None if output else os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            cwd, env = self.spec.cwd, {**self.environment(), **command.env}
            if command.folder:
                # As a shell leaves them (cd, POSIX).
                here = os.path.realpath(cwd)
                cwd = cwd / command.folder
                env |= {"OLDPWD": here, "PWD": os.path.normpath(os.path.join(here, command.folder))}  # noqa: PTH118
            self._holder.start(
                job,
                command.argv,
                cwd=cwd,
                env=env,
                output=output or (null, null),  # type: ignore[arg-type]
                listener=listener,
                main=main,
                stdin=listener.stdin,
                tty=tty,
                keep=keep,
            )
        except DevloopError as error:
            listener.job_failed(error.what, error.hint or "")
        finally:
            listener.handed_over()
            if null is not None:
                os.close(null)

    async def _run(
        self,
        job: str,
        command: Command,
        streams: tuple[str, str] | None,
        timeout: float | None = None,
        *,
        keep: bool = False,
    ) -> int:
        """Run to the end. The exit code; 127 if it could not be started.

        Raises TimeoutError after `timeout` seconds. Its tree is ended then, and when this is cancelled.
        """
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def end(code: int) -> None:
            if not ended.done():
                ended.set_result(code)

        def failed(error: str, _: str) -> None:
            self._say(error)
            end(127)

        listener = Run(self, streams, lambda *_: None, failed, lambda e: end(e.code), keep=keep)
        self._start(job, command, listener, keep=keep)
        try:
            async with asyncio.timeout(timeout):
                return await ended
        finally:
            if job in self._holder.jobs:
                self._holder.stop(job, signal.SIGKILL, 0.0)

    async def _run_build(self, job: str, run: int, command: Command) -> None:
        await self._build_over.wait()
        if self._build != job:
            return
        self._build_over.clear()
        self.logs.add(self.name, BUILD, [f"$ {command.text}".encode()])
        try:
            code = await self._run(job, command, (BUILD, BUILD), keep=True)
        finally:
            self._build_over.set()
        if self._build == job:
            self._build = None
            self._tell(ev.BuildEnded(self.name, run, "" if code == 0 else f"build exited with {code}"))

    async def _run_reload(self, run: int, command: Command) -> None:
        try:
            job = f"reload-{next(self._numbers)}"
            code = await self._run(job, command, (DEVLOOP, DEVLOOP), RELOAD_TIMEOUT)
            failure = "" if code == 0 else f"`{command.text}` exited with {code}"
        except TimeoutError:
            failure = f"`{command.text}` took longer than {RELOAD_TIMEOUT:g} s"
        self._tell(ev.ReloadEnded(self.name, run, failure))

    async def _probe(self, run: int, ready: Probe | None, live: Probe | None) -> None:
        async def command(check: ExecCheck, timeout: float) -> int:
            return await self._run(f"probe-{next(self._numbers)}", check.command, None, timeout)

        def late(failure: str) -> None:
            self._tell(ev.NotReadyInTime(self.name, run, failure))

        def waiting(failure: str) -> None:
            self._tell(ev.NotReadyYet(self.name, run, failure))

        if ready is not None and not isinstance(ready.check, LogCheck):
            await probes.until_ready(ready, command, late, self._connect, waiting, lambda: self._held)
            self._tell(ev.BecameReady(self.name, run))
        elif ready is not None and self._matched_run != run:
            assert isinstance(ready.check, LogCheck)
            # Told by the log itself; only its lateness is left to see to.
            await self._until_late(run, ready, f"no line matches {ready.check.pattern!r}", waiting, late)
        if live is not None:
            failure = await probes.until_dead(live, command, self._connect, lambda: self._held)
            self._tell(ev.NotAlive(self.name, run, failure))

    async def _until_late(
        self, run: int, ready: Probe, missing: str, waiting: Callable[[str], None], late: Callable[[str], None]
    ) -> None:
        """Wait for the grace, which begins anew whenever the probes were held."""
        began, told = time.monotonic_ns(), False
        while self._matched_run != run:
            left = ready.grace - (time.monotonic_ns() - began)
            await asyncio.sleep(min(max(left, 0), probes.QUIET) / SECOND)
            if self._matched_run == run:
                return
            if self._held:
                began = time.monotonic_ns()
            elif time.monotonic_ns() - began >= ready.grace:
                late(missing)
                return
            elif not told:
                told = True
                waiting(missing)

    def _say(self, text: str) -> None:
        self.logs.say(self.name, text)

    def _spawn_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = background(work, name=self.name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

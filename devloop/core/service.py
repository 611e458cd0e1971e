"""The life of one local service, as a pure state machine.

What is wanted and what is there are kept apart, and `_advance` takes the next step from one to the other.
So each event only notes what it changes, and orders like "a save while the build of the last save runs, while
the old process is still ending" need no case of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from devloop.config.model import Mode, ReloadKind, Restart, Service
from devloop.core import commands as do
from devloop.core.flap import FlapGuard, Verdict
from devloop.core.timeline import Timeline
from devloop.protocol import Cause, Outcome, State

_AT_REST = {Mode.LOCAL: State.STOPPED, Mode.REMOTE: State.REMOTE, Mode.OFF: State.OFF}
"""The state of a service that is not wanted here and of which nothing runs."""


class World(Enum):
    """What a local service has of its remote: its network, variables and files."""

    NONE = "none"
    """There is no remote."""
    ABSENT = "absent"
    OPENING = "opening"
    OPEN = "open"


class ServiceLife:
    """One service. Its methods are its events; each returns the commands that follow from it, in order."""

    def __init__(self, spec: Service, *, has_remote: bool = False) -> None:
        self.spec = spec
        self.world = World.ABSENT if has_remote else World.NONE
        self.mode = spec.mode
        self.state = State.REMOTE if spec.mode is Mode.REMOTE else State.OFF
        self.reason = ""
        self.since = 0
        """Monotonic time of the last change of state."""
        self.run = 0
        """Number of the process, and of the build, that counts; what older ones say is ignored."""
        self.pid: int | None = None
        self.exit_code: int | None = None
        self.starts = 0
        self.stale = False
        self.prompt = ""
        """The debugger's prompt that its process waits at; empty if it does not."""
        self.timeline: Timeline | None = None
        self.unmet: tuple[str, ...] = ()
        """What it waits for before its first start; kept up to date by the supervisor."""
        self.stuck = ""
        """Which service keeps it from ever starting, if it waits; kept up to date by the supervisor too."""
        self.generation = 0
        """Starts of its process that somebody wanted: not those after a crash."""
        self._wanted = False
        self._due = False  # a new process is to be started, in place of the one that there may be
        self._gated = True  # dependencies count before the first start only
        self._burst = False  # files are still changing
        self._build_due = False
        self._building = False
        self._reload_due = False  # the process shall reload itself
        self._alive = False  # a process runs, or is being started
        self._stopping = False
        self._backoff = False
        self._held = False  # it is started late on purpose, for the flap guard
        self._sick = ""  # why it is being stopped, if the liveness probe asked for it
        self._failures = 0
        self._again = False  # the next start comes of a crash
        self._spawned_at = 0
        self._flap = FlapGuard()
        self._out: list[do.Command] = []

    # What the supervisor asks.

    @property
    def wanted(self) -> bool:
        """Whether it shall run here."""
        return self._wanted

    @property
    def gone(self) -> bool:
        """Nothing of it runs here, neither a process nor a build."""
        return not self._alive and not self._building

    @property
    def pending(self) -> bool:
        """A new process is to be started."""
        return self._due

    @property
    def over(self) -> bool:
        """It does not run, and will not by itself: it is done, has failed, or waits for what will not come."""
        if not self._wanted or not self.gone or self._burst or self.spec.schedule is not None:
            return False
        if self.state is State.WAITING:
            return bool(self.stuck)
        return not self._due and self.state in (State.COMPLETED, State.FAILED, State.CRASH_LOOP)

    @property
    def watches(self) -> bool:
        """A change of a file may start it."""
        return bool(self.spec.watch) and self.spec.reload.kind is not ReloadKind.MANUAL

    @property
    def exit_status(self) -> int:
        """How it ended, as a shell's `$?`; 1 where it failed without ending."""
        if self.state not in (State.FAILED, State.CRASH_LOOP):
            return 0
        code = self.exit_code
        if not code or not self.reason.startswith(_ending(code)):
            return 1
        return code if code > 0 else 128 - code

    @property
    def started(self) -> bool:
        """For `depends_on`: a process runs, or has run to its end."""
        runs = self.state is State.STARTING and self.pid is not None
        return runs or self.state in (State.READY, State.COMPLETED)

    @property
    def ready(self) -> bool:
        """For `depends_on`: its probe passed."""
        return self.state is State.READY or (self.state is State.COMPLETED and not self.spec.task)

    @property
    def completed(self) -> bool:
        """For `depends_on`: it ended with 0."""
        return self.state is State.COMPLETED

    # Events from the user.

    def start(self, now: int) -> list[do.Command]:
        """It shall run. Nothing happens to one that runs already, or to a task that is done."""
        runs = self._wanted and self.state not in (State.FAILED, State.CRASH_LOOP, State.COMPLETED)
        if self.mode is not Mode.LOCAL or runs or (self.spec.task and self.completed):
            return []
        if self.spec.schedule is not None:
            return self._await_time(now)
        self._wanted = True
        self._gated = True
        self._failures = 0
        self._open(Cause.START, now)
        self._want_process(build=True)
        return self._advance(now)

    def stop(self, now: int) -> list[do.Command]:
        """It shall not run."""
        if self._wanted and self.spec.build is not None:
            self._out.append(do.EndBuildServers(self.spec.name))
        if self._wanted and self.spec.schedule is not None:
            self._out.append(do.ClearSchedule(self.spec.name))
        self._wanted = False
        self._due = self._build_due = self._reload_due = self._burst = False
        self._end_loop(Outcome.SUPERSEDED, "stopped")
        self._clear_backoff()
        return self._advance(now)

    def restart(self, now: int, cause: Cause, *, build: bool) -> list[do.Command]:
        """A new process, now, whatever is there; also starts one that does not run."""
        if self.mode is not Mode.LOCAL:
            return []
        if cause is not Cause.DEPENDENCY:
            self._flap.reset()
            self._out.append(do.WatchAgain(self.spec.name))
        self._open(cause, now)
        if not self._wanted and self.spec.schedule is not None:
            self._out.append(do.SetSchedule(self.spec.name))
        self._wanted = True
        self._gated = self._gated and not self.starts
        self._failures = 0
        self._want_process(build=build or (cause is Cause.MANUAL and self.stale))
        return self._advance(now)

    def set_mode(self, mode: Mode, now: int) -> list[do.Command]:
        """Here, there, or off."""
        if mode is self.mode:
            return []
        self.mode = mode
        return self.start(now) if mode is Mode.LOCAL else self.stop(now)

    def respecify(self, spec: Service, now: int, *, restart: bool) -> list[do.Command]:
        """The configuration has changed; `restart` if the process is to see it."""
        old, self.spec = self.spec, spec
        if old.place != spec.place and self.world is World.OPEN:
            self.world = World.ABSENT
        if self._wanted and old.schedule != spec.schedule:
            return self._reschedule(now)
        if restart and self._wanted and spec.schedule is None:
            return self.restart(now, Cause.CONFIG, build=old.build != spec.build)
        if self._alive and not self._stopping and (old.ready, old.live) != (spec.ready, spec.live):
            self._out.append(do.StartProbes(spec.name, self.run))
        self._publish()
        return self._flush()

    # Events from the clock.

    def run_due(self, now: int) -> list[do.Command]:
        """The next run of a task by its schedule. Never two at once."""
        if not self._wanted or self.spec.schedule is None:
            return []
        if self._alive or self._building or self._due:
            self._tell("info", "its time has come, and its last run is not over: left out", "")
            return self._flush()
        self._open(Cause.SCHEDULE, now)
        self._gated = True
        self._failures = 0
        self._want_process(build=self.stale or not self.starts)
        return self._advance(now)

    def _await_time(self, now: int) -> list[do.Command]:
        if not self._wanted:
            self._wanted = True
            self._out.append(do.SetSchedule(self.spec.name))
            if not self._alive:
                self._become(State.WAITING, now, "for its time")
        return self._flush()

    def _reschedule(self, now: int) -> list[do.Command]:
        if self.spec.schedule is None:
            self._out.append(do.ClearSchedule(self.spec.name))
            if self.state is State.WAITING and not self._due:
                self._wanted = False
                return self._flush() + self.start(now)
        else:
            self._out.append(do.SetSchedule(self.spec.name))
        self._publish()
        return self._flush()

    # Events from the remote.

    def world_opened(self, now: int) -> list[do.Command]:
        """What waited for it may go on."""
        if self.world is not World.OPENING:
            return []
        self.world = World.OPEN
        return self._advance(now)

    def world_failed(self, failure: str, hint: str, now: int) -> list[do.Command]:
        """Its process would lack what it needs: it is not started."""
        if self.world is not World.OPENING:
            return []
        self.world = World.ABSENT
        if not self._wanted or not self._due:
            return self._flush()
        self._due = self._build_due = False
        self._end_loop(Outcome.FAILED, failure)
        self._tell("error", failure, hint)
        if not self._alive:
            self._become(State.FAILED, now, failure)
        return self._flush()

    def world_changed(self, reason: str) -> list[do.Command]:
        """The next start will have it anew; what runs goes on."""
        if self.world is World.OPEN:
            self.world = World.ABSENT
            if self._alive:
                self.stale = True
                self._tell("info", reason, "restart it to have them")
                self._publish()
        return self._flush()

    # Events from the watcher.

    def files_changed(self, files: Iterable[str], edited: int, now: int) -> list[do.Command]:
        """Content has changed. Without a build the old process ends at once, while the burst settles."""
        names = tuple(files)
        if not self._wanted or self.mode is not Mode.LOCAL:
            return []
        if self.spec.reload.kind is ReloadKind.MANUAL:
            self.stale = True
            self._publish()
            return self._flush()
        verdict = self._judge(names, now)
        if verdict is Verdict.CAUGHT:
            return self._flush()
        if self.timeline is None or not self._burst:
            self._open(Cause.CHANGE, now, edited)
        assert self.timeline is not None
        self.timeline.changed(names)
        self._burst = True
        self._failures = 0
        self._clear_backoff()
        reloads_itself = self.spec.reload.kind is not ReloadKind.RESTART
        if reloads_itself and self._alive and not self._stopping and not self._due:
            self._reload_due = True
            self._build_due = self.spec.build is not None
            self._cancel_build()
        else:
            self._want_process(build=True)
        if verdict is Verdict.TRIAL:
            self._held = True
            self._out.append(do.SetBackoff(self.spec.name, self.run, now + self._flap.late))
        return self._advance(now)

    def files_settled(self, now: int) -> list[do.Command]:
        """The burst is over: what waited for it may go on."""
        if not self._burst:
            return []
        self._burst = False
        if self.timeline is not None:
            self.timeline.stamp("settled", now)
        return self._advance(now)

    # Events from builds and processes.

    def build_ended(self, run: int, failure: str, now: int) -> list[do.Command]:
        """A failed build leaves what runs as it is."""
        if run != self.run or not self._building:
            return []
        self._building = False
        if failure:
            self._build_due = self._due = self._reload_due = False
            self.stale = True
            self._end_loop(Outcome.FAILED, failure)
            if self._alive:
                self.reason = f"{failure}; the old process goes on"
                self._publish()
            else:
                self._become(State.FAILED, now, failure)
        else:
            self._build_due = False
            if self.timeline is not None:
                self.timeline.stamp("built", now)
        return self._advance(now)

    def process_started(self, run: int, pid: int, now: int) -> list[do.Command]:
        """The new process runs; its probes begin."""
        if run != self.run or not self._alive:
            return []
        self.pid = pid
        self.starts += 1
        self._spawned_at = now
        if self.timeline is not None:
            self.timeline.stamp("spawned", now)
        if self._stopping:
            return self._flush()  # asked to end while it was being started
        self._publish()
        if not self.spec.task:
            self._out.append(do.StartProbes(self.spec.name, run))
        return self._advance(now)

    def process_not_started(self, run: int, failure: str, hint: str, now: int) -> list[do.Command]:
        """Trying again won't help: wait for a change."""
        if run != self.run or not self._alive:
            return []
        self._alive = self._stopping = False
        self.pid = None
        if not self._wanted or self._due:
            return self._advance(now)
        self._end_loop(Outcome.FAILED, failure)
        self._become(State.FAILED, now, failure)
        self._tell("error", failure, hint)
        return self._flush()

    def process_ended(
        self, run: int, code: int, left_behind: int, survivors: tuple[str, ...], now: int
    ) -> list[do.Command]:
        """The process is gone, asked or not."""
        if run != self.run or not self._alive:
            return []
        asked = self._stopping
        self._alive = self._stopping = False
        self._leave_prompt()
        self.pid = None
        self.exit_code = code
        self._out.append(do.StopProbes(self.spec.name))
        if survivors:
            self._tell("error", f"did not end, even when killed: {', '.join(survivors)}", "")
        if self.timeline is not None and (asked or self._due):
            # It may have crashed just before the change was seen.
            self.timeline.stamp("stopped", max(now, self.timeline.began))
        if asked and self._sick:
            return self._failed(self._sick, now)
        if asked or self._due or not self._wanted:
            return self._advance(now)
        self._reload_due = False
        if left_behind:
            self._tell(
                "warning",
                f"its main process ended; {left_behind} that it left behind were ended too",
                "run the server in the foreground, so that devloop can tell whether it lives",
            )
        if code == 0 and (self.spec.task or self.spec.restart.policy is not Restart.ALWAYS):
            if self.spec.task and self.timeline is not None:
                self.timeline.stamp("ready", now)
                self._end_loop(Outcome.OK)
            else:
                self._end_loop(Outcome.FAILED, "exited with 0")
            self.stale = False
            self._become(State.COMPLETED, now, "" if self.spec.task else "exited with 0")
            return self._advance(now)
        return self._failed(_ending(code), now)

    def became_ready(self, run: int, now: int) -> list[do.Command]:
        """The loop is closed."""
        if run != self.run or not self._alive or self._stopping:
            return []
        if not self._due and not self._burst and not self._build_due and not self._reload_due:
            self.stale = False
            if self.timeline is not None:
                self.timeline.stamp("ready", now)
                self._end_loop(Outcome.OK)
        if self.state is not State.READY or self.reason:
            self._become(State.READY, now)
        return self._flush()

    def not_ready_yet(self, run: int, failure: str) -> list[do.Command]:
        """What its probe says meanwhile."""
        if run != self.run or not self._alive or self._stopping or self.state is State.READY:
            return []
        word = "not ready" if self.reason.startswith("not ready: ") else "waiting"
        if self.reason != (reason := f"{word}: {failure}"):
            self.reason = reason
            self._publish()
        return self._flush()

    def not_ready_in_time(self, run: int, failure: str) -> list[do.Command]:
        """The loop has failed; the process goes on, and may become ready yet."""
        if run != self.run or not self._alive or self._stopping or self.prompt:
            return []
        self.reason = f"not ready: {failure}"
        self._end_loop(Outcome.FAILED, self.reason)
        self._publish()
        return self._flush()

    def prompt_shown(self, run: int, prompt: str) -> list[do.Command]:
        """A person has it: that it does not answer is no fault, and how long that takes is no loop's time."""
        if run != self.run or not self._alive or self._stopping:
            return []
        if not self.prompt:
            self._out.append(do.HoldProbes(self.spec.name))
        self.prompt = prompt
        if not self._due and not self._burst:
            self._end_loop(Outcome.SUPERSEDED, f"it waits for a person: {prompt}")
        self._publish()
        return self._flush()

    def prompt_gone(self, run: int) -> list[do.Command]:
        """It goes on."""
        if run == self.run:
            self._leave_prompt()
        return self._flush()

    def _leave_prompt(self) -> None:
        if self.prompt:
            self.prompt = ""
            self._out.append(do.ReleaseProbes(self.spec.name))
            self._publish()

    def not_alive(self, run: int, failure: str, now: int) -> list[do.Command]:
        """It is stopped, and counts as failed when it has ended; not while a person has it."""
        if run != self.run or not self._alive or self._stopping:
            return []
        if self.prompt:
            self._out.append(do.StartProbes(self.spec.name, run))
            return self._flush()
        self._sick = f"not alive: {failure}"
        self._stop_process(now, self._sick)
        return self._flush()

    def reload_ended(self, run: int, failure: str, now: int) -> list[do.Command]:
        """Reloaded by itself: ready again when its probe says so."""
        if run != self.run or not self._alive or self._stopping:
            return []
        if failure:
            self.stale = True
            self.reason = f"reload failed: {failure}"
            self._end_loop(Outcome.FAILED, self.reason)
            self._publish()
        else:
            if self.timeline is not None:
                self.timeline.stamp("spawned", now)
            self._become(State.STARTING, now, "reloading")
            self._out.append(do.StartProbes(self.spec.name, run))
        return self._flush()

    def backoff_ended(self, run: int, now: int) -> list[do.Command]:
        """The next attempt."""
        if self._held:
            self._held = False
            return self._advance(now)
        if run != self.run or not self._backoff:
            return []
        self._backoff = False
        self._open(Cause.CRASH, now)
        self._want_process(build=False)
        self._again = True
        return self._advance(now)

    def dependencies(self, unmet: tuple[str, ...], now: int) -> list[do.Command]:
        """What it still waits for has changed."""
        if unmet == self.unmet:
            return []
        self.unmet = unmet
        return self._advance(now) if self._wanted else []

    # The way from what is there to what is wanted.

    def _advance(self, now: int) -> list[do.Command]:
        if not self._wanted:
            self._cancel_build()
            if not self._alive:
                self._become(_AT_REST[self.mode], now)
            elif not self._stopping:
                self._stop_process(now)
        elif self._due:
            self._advance_process(now)
        elif self._reload_due and not self._burst:
            if self._build_due:
                self._start_build(now)
            else:
                self._reload_due = False
                self._out.append(do.ReloadProcess(self.spec.name, self.run))
        return self._flush()

    def _advance_process(self, now: int) -> None:
        if self._burst:
            # The build has to succeed before the old process may go; without one it ends meanwhile.
            if self._alive and not self._stopping and not self._build_due:
                self._stop_process(now, "changed")
        elif self._gated and self.unmet:
            self._become(State.WAITING, now, f"for {', '.join(self.unmet)}")
        elif self.world is World.OPENING:
            if not self._alive:
                self._become(State.WAITING, now, "for what it has of the remote")
        elif self._build_due:
            self._start_build(now)
        elif self._alive:
            if not self._stopping:
                self._stop_process(now, "restart")
            else:
                self._publish()  # wanted again while it ends: what connects to it waits
        elif self._held:
            self._become(State.WAITING, now, f"a moment: does it write {', '.join(self._flap.culprits())} itself?")
        else:
            self._due = self._gated = False
            self._alive = True
            self._sick = ""
            self.run += 1
            self.generation += not self._again
            self._become(State.STARTING, now, "the task runs" if self.spec.task else "")
            self._out.append(do.StartProcess(self.spec.name, self.run))

    def _want_process(self, *, build: bool) -> None:
        self._due = True
        self._again = False
        self._reload_due = False
        self._clear_backoff()
        if build and self.spec.build is not None:
            self._build_due = True
        self._cancel_build()
        if self.world is World.ABSENT:
            self.world = World.OPENING  # side by side with what else it waits for
            self._out.append(do.OpenWorld(self.spec.name))

    def _start_build(self, now: int) -> None:
        if self._alive:
            self.reason = "building"
            self._publish()
        else:
            self._become(State.BUILDING, now)
        if self._building:
            return
        self._building = True
        if not self._alive:
            self.run += 1
        self._out.append(do.StartBuild(self.spec.name, self.run))

    def _cancel_build(self) -> None:
        if self._building:
            self._building = False
            self._out.append(do.CancelBuild(self.spec.name, self.run))

    def _stop_process(self, now: int, reason: str = "") -> None:
        self._stopping = True
        self._leave_prompt()
        self._out.append(do.StopProbes(self.spec.name))
        self._become(State.STOPPING, now, reason)
        self._out.append(do.StopProcess(self.spec.name, self.run))

    def _failed(self, failure: str, now: int) -> list[do.Command]:
        """The process failed by itself: again after a while, or no more."""
        self._sick = ""
        policy = self.spec.restart
        self._end_loop(Outcome.FAILED, failure)
        if self._due:
            return self._advance(now)
        if policy.policy is Restart.NEVER:
            self._become(State.FAILED, now, failure)
            return self._flush()
        # A service that has run for long was up; a task that has run for long has not succeeded for all that.
        if not self.spec.task and now - self._spawned_at > policy.window:
            self._failures = 0
        self._failures += 1
        if self._failures >= policy.limit:
            again = f"{failure}, {self._failures} times in a row" if self._failures > 1 else failure
            # By its schedule it starts again by itself.
            self._become(State.CRASH_LOOP if self.spec.schedule is None else State.FAILED, now, again)
            by_itself = "it starts again when a watched file changes, or by" if self.watches else "it starts again by"
            self._tell("error", again, f"{by_itself} `devloop restart`" if self.spec.schedule is None else "")
            return self._flush()
        delay = min(policy.delay * 2 ** (self._failures - 1), policy.max_delay)
        self._backoff = True
        self._out.append(do.SetBackoff(self.spec.name, self.run, now + delay))
        self._become(State.BACKOFF, now, f"{failure}; attempt {self._failures + 1} follows")
        return self._flush()

    def _clear_backoff(self) -> None:
        if self._backoff or self._held:
            self._backoff = self._held = False
            self._out.append(do.ClearBackoff(self.spec.name))

    def _judge(self, files: tuple[str, ...], now: int) -> Verdict:
        """Does the service itself write these files? If so, they are not watched any more."""
        if self._burst or not (self.starts or self._alive):
            return Verdict.NOTHING
        # A process that is being started may have written already: its word and the watcher's come by two ways.
        since_start = now - self._spawned_at if self.pid else 0 if self._alive else None
        verdict = self._flap.changed(frozenset(files), since_start)
        if verdict is Verdict.CAUGHT:
            culprits = self._flap.culprits()
            self._flap.reset()
            self._out.append(do.IgnoreFiles(self.spec.name, culprits))
            self._tell(
                "warning",
                f"restarts itself: it writes {', '.join(culprits)} after each start; no longer watched",
                f"add them to `ignore` of services.{self.spec.name}; `devloop restart` watches them again",
            )
        return verdict

    # Small things.

    def _open(self, cause: Cause, now: int, edited: int | None = None) -> None:
        self._end_loop(Outcome.SUPERSEDED)
        self.timeline = Timeline(self.spec.name, cause, "detected", now)
        if edited is not None:
            self.timeline.stamp("edited", min(edited, now))

    def _end_loop(self, outcome: Outcome, detail: str = "") -> None:
        if self.timeline is not None:
            self._out.append(self.timeline.end(outcome, detail))
            self.timeline = None

    def _become(self, state: State, now: int, reason: str = "") -> None:
        if (state, reason) != (self.state, self.reason):
            if state is not self.state:
                self.since = now
            self.state, self.reason = state, reason
        self._publish()

    def _publish(self) -> None:
        self._out.append(do.PublishStatus(self.spec.name))

    def _tell(self, level: str, text: str, hint: str) -> None:
        self._out.append(do.Tell(level, self.spec.name, text, hint))

    def _flush(self) -> list[do.Command]:
        out, self._out = self._out, []
        return out


def _ending(code: int) -> str:
    return f"exited with {code}" if code >= 0 else f"ended by signal {-code}"

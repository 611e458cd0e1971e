"""All services' files, watched together, and told apart."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from devloop.agent.tasks import background
from devloop.local.watch.fingerprint import Fingerprints
from devloop.local.watch.links import trace
from devloop.local.watch.mounts import Mounts
from devloop.local.watch.poll import POLL_INTERVAL, Poller
from devloop.local.watch.scope import Scope, WatchSpec
from devloop.local.watch.source import Happening, Kind, Source, WatchLimitError
from devloop.local.watch.survey import Finding, Found, survey, survey_files
from devloop.local.watch.trees import WatchfilesSource

PLAUSIBLE = 2_000_000_000
"""A modification time further back than this, in nanoseconds, was not set by the save that is reported: the
file was moved or copied here."""
UNWHOLE_QUIET = 60_000_000
"""Shortest quiet time where the source can't tell that a file is whole, in nanoseconds."""
NEW = 15_000_000
"""A file that was just made counts if it is still there after so long, in nanoseconds: editors, sed and rsync write
into a new file beside the old one, and then rename it."""
VANISHED = 40_000_000
"""A file that is gone counts if it has not come back after so long, in nanoseconds: Vim and Emacs rename the old
file to a backup before they write the new one."""
SLICE = 0.003
"""Seconds of work on events between two turns of the event loop, which answers others meanwhile."""
BULK = 200
"""When so many files are to be looked at, they are read only where size and times leave a doubt."""
MANY_DUE = 20
"""Files that wait for so long, more than an editor makes: somebody removes or writes a folder, and is not done."""
LOST_PAUSE = 0.1
"""Seconds after events were lost until everything is looked at: more of them will come."""
LOOK_ROUND = 2.0
"""Seconds between two looks at whether the named paths are still the same: a mount is reported by no event."""
TOLD = 100
"""Of so many files at the most, the time of the save is looked up."""
TOPS = frozenset({"/", "/usr", "/var"})
"""Links in here (/bin, /var/run) are the system's, and don't change."""


class Watcher:
    """Tells which watched files of which service have changed their content.

    `on_change(service, files, edited, detected)`: files relative to `root` where they lie below it; edited is
    the modification time of the first of them, detected that of the report, both monotonic nanoseconds.
    `on_trouble(service, text, hint)` is told when watching is not what it should be; the service may be empty.
    """

    def __init__(
        self,
        root: Path,
        on_change: Callable[[str, tuple[str, ...], int, int], None],
        on_trouble: Callable[[str, str, str], None],
    ) -> None:
        self._root = f"{trace(str(root))[0].rstrip('/')}/"
        self._on_change = on_change
        self._on_trouble = on_trouble
        self._scopes: list[Scope] = []
        self._by_name: dict[str, Scope] = {}
        self._quarantine: dict[str, set[str]] = {}
        """Service → files that it writes itself (the flap guard)."""
        self._source: Source | None = None
        self._poller = Poller(self)
        self._prints = Fingerprints()
        self._lock = asyncio.Lock()
        self._learning: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._work: deque[Iterator[object]] = deque()
        self._relearns = False
        """Everything will be looked at for what is no longer ignored."""
        self._held = True
        self._at_work = False
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rescan: asyncio.TimerHandle | None = None
        self._open: dict[str, None] = {}
        """Files that were made and not yet closed by their writer."""
        self._due: dict[str, tuple[int, int]] = {}
        """File → when it is to be looked at, and when it was reported."""
        self._changed: dict[str, dict[str, int]] = {}
        """Service → its changed files that were not passed on yet, and when each was detected."""
        self._told: set[tuple[str, str]] = set()
        self._relinked: dict[Scope, tuple[str, ...]] = {}
        """Those with a link that was changed → what they watched before."""

    @property
    def quiet(self) -> int:
        """Shortest quiet time that the source allows, in nanoseconds."""
        return 0 if self._source is None or self._source.whole_files else UNWHOLE_QUIET

    @property
    def busy(self) -> bool:
        """Whether there are reports that were not looked at yet: more changes may come of them."""
        return bool(self._work) or self._rescan is not None or len(self._due) > MANY_DUE

    async def watch(self, specs: Iterable[WatchSpec], own: Iterable[Path] = ()) -> None:
        """Watch exactly this. Returns when the kernel reports every change.

        `own`: files that don't count by lying in a watched folder, for they are the project's. Changes between the
        call and its return are not missed: they are found by their modification time.
        """
        began = time.time_ns()
        async with self._lock:
            self._held = True
            if self._source is not None:
                self._source.pause()
            await asyncio.to_thread(self._take, list(specs), list(own))
            if self._source is None and not self._poller.everything:
                try:
                    self._source = await asyncio.to_thread(self._open_source)
                except WatchLimitError as error:
                    self._poll_instead(error.name)
            files: list[str] = []
            try:
                await asyncio.to_thread(self._arm_all, files)
            except WatchLimitError as error:
                self._poll_instead(error.name)
                files.clear()
                await asyncio.to_thread(self._arm_all, files)
            self._held = False
            if self._source is not None:
                self._source.resume()
            self._poller.start()
            self._tell_all()
            # Learned after the watch is armed, so that nothing is missed between; see FRESH.
            self._learning = background(self._learn(files, began))
            if self._looking is None:
                self._looking = background(self._look_round())
            self._go_on()

    async def close(self) -> None:
        """Stop watching."""
        async with self._lock:  # a thread that is opening the source can't be interrupted
            self._held = True
            self._poller.stop()
            for handle in (self._turn, self._timer, self._rescan):
                if handle is not None:
                    handle.cancel()
            for task in (self._learning, self._looking):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            if self._source is not None:
                self._source.close()
                self._source = None

    def quarantine(self, service: str, files: Iterable[str]) -> None:
        """Pass over these files for this service."""
        self._quarantine.setdefault(service, set()).update(os.path.join(self._root, file) for file in files)

    def release(self, service: str) -> None:
        """Watch them again."""
        self._quarantine.pop(service, None)

    # What is watched.

    def _take(self, specs: list[WatchSpec], own: list[Path]) -> None:
        ours = frozenset(str(path) for path in own) | {trace(str(path))[0] for path in own}
        before = {(scope.spec, scope.own): scope for scope in self._scopes}
        scopes: dict[tuple[WatchSpec, frozenset[str]], Scope] = {}
        self._by_name = {}
        for spec in specs:
            # The project's own files are watched under an empty name, and count there.
            key = replace(spec, name=""), ours if spec.name else frozenset[str]()
            scope = scopes.get(key)
            if scope is None:
                scope = scopes[key] = before.get(key) or Scope(*key)
                scope.names = []
            scope.names.append(spec.name)
            self._by_name[spec.name] = scope
        self._scopes = list(scopes.values())
        for service in set(self._quarantine) - set(self._by_name):
            del self._quarantine[service]

    def _arm_all(self, files: list[str]) -> None:
        """Arm every folder, and note what is there; `files` gets what is to be learned."""
        for finding in self._survey_all():
            if finding is not None and finding[0] is Found.NEW:
                self._prints.note(finding[1])
                files.append(finding[1])

    def _survey_all(self) -> Iterator[Finding | None]:
        """Look at everything, and from now on at what the named paths and links lead to now."""
        # Copies, here and below: a look of the poller's, in its thread, may find a link and add what it leads to.
        before = {root for scope in self._scopes for root in tuple(scope.roots)}
        mounts = Mounts()
        for scope in self._scopes:
            scope.reset(mounts)
        roots = {root: None for scope in self._scopes for root in tuple(scope.roots)}
        yield from survey([*roots, *(before - set(roots))], self._scopes, self._prints, self._arm)
        for root in sorted(before):
            if not any(scope.owner(root) for scope in self._scopes):
                if self._source is not None:
                    self._source.drop(root)
                yield from ((Found.GONE, path) for path in self._prints.below(root))
        single = {path: None for scope in self._scopes for path in (*scope.files, *scope.points)}
        # To see them come and go, the folder above is watched: the nearest one that there is.
        folders: dict[str, None] = {}
        for path in (*single, *(root for scope in self._scopes for root in tuple(scope.roots))):
            folder = os.path.dirname(path)
            while not os.path.isdir(folder) and folder != "/":
                folder = os.path.dirname(folder)
            if folder not in TOPS:
                folders[folder] = None
        for folder in folders:
            if self._source is not None:
                self._source.add(folder)
        yield from survey_files(single, self._prints)

    def _arm(self, folder: str) -> None:
        if self._source is None or not any(s.owner(folder) for s in self._scopes if not s.polled):
            return
        error = self._source.add(folder)
        if isinstance(error, PermissionError):
            for scope in self._scopes:
                if folder in scope.roots:
                    scope.refused[folder] = "it may not be read"

    async def _learn(self, files: list[str], began: int) -> None:
        modified = await asyncio.to_thread(self._prints.learn, files, began)
        if modified:
            self._queue(self._look_at(modified))

    def _open_source(self) -> Source:
        if sys.platform != "linux":
            return WatchfilesSource(self._deliver)
        from devloop.local.watch.inotify import InotifySource

        return InotifySource(self._deliver)

    def _poll_instead(self, limit: str) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None
        self._poller.everything = True
        self._on_trouble(
            "",
            f"the limit fs.inotify.{limit} is reached: files are polled every {POLL_INTERVAL // 1_000_000} ms instead",
            f"raise it with `sudo sysctl fs.inotify.{limit}={'524288' if 'watches' in limit else '1024'}`, "
            "or ignore large folders",
        )

    def _tell_all(self) -> None:
        """Say what is not watched as its user may think."""
        for name, scope in self._by_name.items():
            if not name:
                continue
            for path, why in tuple(scope.refused.items()):
                self._tell(name, f"{self._shown(path)} can't be watched: {why}", "watch takes folders and files")
            for path in scope.missing:
                hint = "it is watched as soon as it is there; if the name is wrong, mend `watch`"
                self._tell(name, f"watch: there is no {self._shown(path)}", hint)
            if not self._poller.everything:
                every = self._poller.interval(scope) / 1e9
                for folder, what in tuple(scope.silent.items()):
                    text = f"{self._shown(folder)} is on {what}, which does not report all changes"
                    hint = '`poll = "1s"` sets another time, `watch_mode = "events"` switches it off'
                    self._tell(name, f"{text}: it is polled every {every:g} s", hint)

    def _tell(self, service: str, text: str, hint: str) -> None:
        if (service, text) not in self._told:
            self._told.add((service, text))
            self._on_trouble(service, text, hint)

    async def _look_round(self) -> None:
        while True:
            await asyncio.sleep(LOOK_ROUND)
            scopes = tuple(self._scopes)
            if self._held or self.busy:
                continue
            if await asyncio.to_thread(_any_moved, scopes):
                self._look_again(0)

    # What was reported: taken in the order in which it came, a slice at a time.

    def _deliver(self, batch: list[Happening]) -> None:
        self._queue(self._happened(batch, time.monotonic_ns()))

    def _queue(self, work: Iterator[object]) -> None:
        self._work.append(work)
        if self._turn is None and not self._at_work:
            self._go_on()

    def _go_on(self) -> None:
        self._turn = None
        if self._held:
            return
        until = time.monotonic() + SLICE
        self._at_work = True
        try:
            while self._work:
                for _ in self._work[0]:
                    if time.monotonic() > until:
                        return
                self._work.popleft()
        except WatchLimitError as error:
            self._work.clear()
            self._relearns = False
            self._poll_instead(error.name)
            self._poller.start()
            self._look_again(0)
        finally:
            self._at_work = False
            self._pass_on()
            if self._work:
                self._turn = asyncio.get_running_loop().call_soon(self._go_on)
            self._set_timer()

    def _happened(self, batch: list[Happening], now: int) -> Iterator[None]:
        bulk = len(batch) > BULK
        for kind, path in batch:
            match kind:
                case Kind.LOST:
                    self._look_again(LOST_PAUSE)
                case Kind.FOLDER_CAME:
                    yield from self._folder_came(path, now)
                case Kind.FOLDER_GONE:
                    yield from self._folder_gone(path, now)
                case Kind.GONE:
                    self._open.pop(path, None)
                    self._due.pop(path, None)
                    if self._prints.knows(path):
                        self._due[path] = (now + VANISHED, now)
                case Kind.CREATED:
                    # Its writer will close it, and that is told; but nobody closes a link.
                    self._open[path] = None
                    self._due.pop(path, None)
                    self._due[path] = (now + (VANISHED if self._prints.knows(path) else NEW), now)
                case Kind.WRITTEN if path in self._open and not self._prints.knows(path):
                    del self._open[path]
                    self._due.pop(path, None)
                    self._due[path] = (now + NEW, now)
                case Kind.TOUCHED if path in self._open:
                    pass
                case _:
                    self._open.pop(path, None)
                    self._due.pop(path, None)
                    self._look_at_one(path, now, bulk=bulk)
            if path.endswith("/.gitignore"):
                self._forget_ignored()
            yield None

    def _folder_came(self, folder: str, now: int) -> Iterator[None]:
        if any(self._awaits(scope, folder) for scope in self._scopes):
            self._look_again(0)
        if self._due.pop(folder, None) is not None:  # a link was here
            self._look_at_one(folder, now, bulk=False)
        # Files that were written before the new folder could be watched are told by no event.
        for finding in survey([folder], self._scopes, self._prints, self._arm):
            if finding is not None:
                self._note_finding(finding, now)
            yield None

    def _folder_gone(self, folder: str, now: int) -> Iterator[None]:
        if any(self._awaits(scope, folder) for scope in self._scopes):
            self._look_again(0)
        for path in self._prints.below(folder):
            self._open.pop(path, None)
            self._due.pop(path, None)
            self._due[path] = (now + VANISHED, now)
            yield None

    @staticmethod
    def _awaits(scope: Scope, folder: str) -> bool:
        """Whether a named path, or a link's target, is this folder or lies in it."""
        if folder in scope.roots or folder in scope.files:
            return True
        return folder in scope.above and scope.owner(folder) is None

    def _note_finding(self, finding: Finding, now: int) -> None:
        found, path = finding
        if found is Found.NEW:
            self._due.setdefault(path, (now + NEW, now))
        elif found is Found.GONE:
            self._due.setdefault(path, (now + VANISHED, now))
        else:
            self._due.setdefault(path, (now, now))

    def _look_again(self, delay: float) -> None:
        """Everything has to be looked at, soon."""
        if self._rescan is None:
            self._rescan = asyncio.get_running_loop().call_later(delay, self._rescan_now)

    def _rescan_now(self) -> None:
        self._rescan = None
        self._queue(self._scan())

    def _scan(self) -> Iterator[None]:
        now = time.monotonic_ns()
        relinked, self._relinked = self._relinked, {}
        for finding in self._survey_all():
            if finding is not None and finding[0] is Found.NEW and self._came_by_link(finding[1], relinked):
                self._prints.note(finding[1])
            elif finding is not None:
                self._note_finding(finding, now)
            yield None
        self._tell_all()

    def _came_by_link(self, path: str, relinked: dict[Scope, tuple[str, ...]]) -> bool:
        """Whether this is new only because a link leads to it now, which has been counted as the change that it is."""
        if not relinked:
            return False
        concerned = [scope for scope in self._scopes if scope.watches_file(path)]
        return all(
            scope in relinked and not any(path.startswith(f"{root}/") for root in relinked[scope])
            for scope in concerned
        )

    def _forget_ignored(self) -> None:
        """What was ignored may count now: it is watched from here on, and is no change by that."""
        for scope in self._scopes:
            scope.forget_ignored()
        if not self._relearns:  # a checkout brings many lists at once, and each look is one at everything
            self._relearns = True
            self._queue(self._survey_quietly())

    def _survey_quietly(self) -> Iterator[None]:
        self._relearns = False
        for finding in self._survey_all():
            if finding is not None and finding[0] is Found.NEW and finding[1] not in self._due:
                self._prints.note(finding[1])
            yield None

    # Files that have to wait before they count.

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and not self._work:
            first = min(due for due, _ in self._due.values()) if len(self._due) < BULK else time.monotonic_ns() + NEW
            delay = max(0, first - time.monotonic_ns()) / 1e9
            self._timer = asyncio.get_running_loop().call_later(delay, self._when_due)

    def _when_due(self) -> None:
        self._timer = None
        now = time.monotonic_ns()
        ripe = [(path, detected) for path, (due, detected) in self._due.items() if due <= now]
        for path, _ in ripe:
            del self._due[path]
        self._queue(self._waited(ripe))

    def _waited(self, ripe: list[tuple[str, int]]) -> Iterator[None]:
        bulk = len(ripe) > BULK
        for path, detected in ripe:
            if path in self._open and not self._complete(path):
                yield None
                continue  # its writer will close it
            self._open.pop(path, None)
            self._look_at_one(path, detected, bulk=bulk)
            yield None

    @staticmethod
    def _complete(path: str) -> bool:
        """Whether a file that nobody has closed is whole all the same: a link of either kind."""
        try:
            info = os.lstat(path)
        except OSError:
            return True
        return not stat.S_ISREG(info.st_mode) or info.st_nlink > 1

    def _look_at(self, paths: Iterable[str]) -> Iterator[None]:
        now = time.monotonic_ns()
        for path in paths:
            self._look_at_one(path, now, bulk=False)
            yield None

    # What has changed.

    def _look_at_one(self, path: str, detected: int, *, bulk: bool) -> None:
        concerned = [scope for scope in self._scopes if scope.watches_file(path)]
        if not concerned:
            return
        # Asked once for all services: asking makes the new content the known one.
        if self._prints.changed(path, bulk=bulk):
            self._count(path, concerned, detected)

    def _count(self, path: str, concerned: Iterable[Scope], detected: int) -> None:
        for scope in concerned:
            if path in scope.points or os.path.islink(path):
                self._relinked.setdefault(scope, tuple(scope.roots))
                self._look_again(0)
            for name in scope.names:
                if path not in self._quarantine.get(name, ()):
                    self._changed.setdefault(name, {})[path] = detected

    def _pass_on(self) -> None:
        changed, self._changed = self._changed, {}
        for name, files in changed.items():
            detected = min(files.values())
            edited = min(_edited(path, detected) for path in list(files)[:TOLD])
            self._on_change(name, tuple(map(self._shown, files)), edited, detected)

    def _shown(self, path: str) -> str:
        """Relative to the project where it lies below it, and fit for a message."""
        path = path.removeprefix(self._root)
        return path.encode(errors="surrogateescape").decode(errors="replace")

    # For the poller, in its thread and after it.

    def polled(self) -> list[Scope]:
        """Those that are to be polled, in whole or in part."""
        return [s for s in self._scopes if self._poller.everything or s.polled or s.silent]

    def poll(self, scopes: list[Scope]) -> list[str]:
        """Look at what these scopes have that is polled; the files whose content has changed."""
        folders: dict[str, None] = {}
        files: dict[str, None] = {}
        for scope in scopes:
            all_of_it = self._poller.everything or scope.polled
            folders.update(dict.fromkeys(scope.roots if all_of_it else scope.silent))
            files.update(dict.fromkeys(scope.files | scope.points if all_of_it else ()))
        found: list[str] = []
        for look in (
            survey(folders, self._scopes, self._prints, lambda folder: None),
            survey_files(files, self._prints),
        ):
            found += [finding[1] for finding in look if finding is not None]
        bulk = len(found) > BULK
        self._poller.wait_until_whole(found)
        return [path for path in dict.fromkeys(found) if self._prints.changed(path, bulk=bulk)]

    def polled_changes(self, paths: list[str]) -> None:
        """The poller has found these to be changed."""
        now = time.monotonic_ns()
        for path in paths:
            self._count(path, [scope for scope in self._scopes if scope.watches_file(path)], now)
        self._pass_on()


def _any_moved(scopes: Iterable[Scope]) -> bool:
    return any(scope.moved for scope in scopes)


def _edited(path: str, detected: int) -> int:
    """When the file was written, on the monotonic clock; the time of the report if that can't be known."""
    try:
        age = time.time_ns() - os.stat(path).st_mtime_ns
    except OSError:
        return detected
    return time.monotonic_ns() - age if 0 <= age < PLAUSIBLE else detected

"""The project's history of loops, in one SQLite file.

The engine holds the only `LoopStore` of a project; the command line reads beside it, or without an engine,
through `read_loops`. Neither ever fails because of what is in the file: a file that is damaged, or that a
newer devloop has written, is set aside under another name, and a disk that can't be written to costs the
history and nothing else. Each such case is told once, as a Notice.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from devloop.errors import DevloopError
from devloop.paths import kind
from devloop.protocol import Cause, Loop, Notice, Outcome

SCHEMA = 1
"""Version of the tables, in the file's `user_version`; raised if an older devloop could not read them."""

KEEP_DAYS = 90
KEEP_ROWS = 100_000
"""Older loops, and more of them, are deleted with an engine's first loop, then every PRUNE_EVERY loops."""
PRUNE_EVERY = 1_000

BUSY = 5.0
"""Seconds that a writer waits for another's lock: a backup tool's, say. Readers never hold up a writer."""

_TABLES = """
create table loops (
    id integer primary key autoincrement,  -- autoincrement: an id is never used twice, even after pruning
    service text not null,
    cause text not null,
    outcome text not null,
    started_at integer not null,           -- Unix time in nanoseconds
    stamps text not null,                  -- JSON object: phase -> nanoseconds since started_at
    files text not null,                   -- JSON array of paths relative to the project
    detail text not null
);
create index loops_by_service on loops (service, id);
create index loops_by_time on loops (started_at);
"""

_COLUMNS = "id, service, cause, outcome, started_at, stamps, files, detail"

Tell = Callable[[Notice], None]


class LoopStore:
    """The engine's store. `add` never waits for the disk; a thread of its own writes.

    `tell` is called with what a person should know. That may happen on the writing thread, so an engine
    hands over something like `partial(loop.call_soon_threadsafe, publish)`. `clock` gives Unix time in
    nanoseconds.
    """

    def __init__(self, path: Path, tell: Tell = lambda _: None, clock: Callable[[], int] = time.time_ns) -> None:
        self.path = path
        self._tell = tell
        self._clock = clock
        self._told: set[str] = set()
        self._database = self._open()
        self._lock = threading.Lock()  # one connection, two threads
        self._last = self._read_last_id()
        self._jobs: queue.SimpleQueue[Loop | threading.Event | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="devloop-metrics", daemon=True)
        self._writer.start()

    @property
    def last_id(self) -> int:
        """The newest loop's id; 0 before the first. Ids go on counting where the last engine stopped."""
        return self._last

    def add(self, loop: Loop) -> Loop:
        """Keep a loop; one with id 0 gets the next id. A loop whose id is there already replaces it.

        Returns the loop with its id. Touches no disk: `flush` waits until all is written.
        """
        if loop.id == 0:
            loop = replace(loop, id=self._last + 1)
        self._last = max(self._last, loop.id)
        self._jobs.put(loop)
        return loop

    def flush(self) -> None:
        """Wait until all loops added so far are in the file."""
        if self._writer.is_alive():
            done = threading.Event()
            self._jobs.put(done)
            done.wait()

    def recent(self, service: str, count: int) -> list[Loop]:
        """The last loops of a service, oldest first."""
        query = f"select {_COLUMNS} from loops where service = ? order by id desc limit ?"
        return self._read(query, service, count)[::-1]

    def loops(self, since: int = 0, service: str | None = None) -> list[Loop]:
        """Loops that began at or after this Unix time (nanoseconds), oldest first."""
        return self._read(*_selection(since, service))

    def begin_again(self) -> None:
        """Go on in a new file: the one that is open was removed."""
        with self._lock:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = self._open()

    def close(self) -> None:
        """Write what is left and close the file. Later loops are not kept; may be called twice."""
        if self._writer.is_alive():
            self._jobs.put(None)
            self._writer.join()
        self._database.close()

    # Reading

    def _read(self, query: str, *values: object) -> list[Loop]:
        self.flush()
        with self._lock:
            try:
                return _loops(self._database.execute(query, values))
            except sqlite3.ProgrammingError:  # closed
                return []
            except sqlite3.DatabaseError as error:
                self._mend(error)
                return []

    def _read_last_id(self) -> int:
        try:
            row = self._database.execute("select seq from sqlite_sequence where name = 'loops'").fetchone()
        except sqlite3.DatabaseError as error:
            self._mend(error)
            row = None
        return int(row[0]) if row else 0

    # Opening

    def _open(self) -> sqlite3.Connection:
        if self.path.is_symlink():
            return self._memory("")
        for _ in range(2):
            try:
                return _prepare(_connect(self.path))
            except _NewerError as error:
                self._set_aside(str(error), f"v{error.version}")
            except sqlite3.OperationalError as error:  # locked, no permission, no space
                return self._memory(error)
            except sqlite3.DatabaseError as error:  # not a database, or damaged
                self._set_aside(f"The history of loops is damaged ({error})", "damaged")
        return self._memory("it can't be opened")

    def _memory(self, why: object) -> sqlite3.Connection:
        hint = f"see to the disk and the rights of {self.path}, then restart devloop"
        if what := _no_file(self.path):
            why, hint = f"{self.path} is {what}, and no file", "remove it, then restart devloop"
        self._say(f"The history of loops can't be kept: {why}", hint=hint)
        return _prepare(_connect(None))

    def _set_aside(self, why: str, suffix: str) -> None:
        kept = self.path.with_name(f"{self.path.name}.{suffix}")
        number = 1
        while kept.exists():
            number += 1
            kept = self.path.with_name(f"{self.path.name}.{suffix}-{number}")
        try:
            self.path.replace(kept)
            for part in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + part).replace(kept.with_name(kept.name + part))
        except OSError as error:
            self._say(f"{why}, and can't be set aside: {error.strerror}")
            return
        self._say(f"{why}; a new one was begun", hint=f"the old file is kept as {kept}")

    def _say(self, text: str, hint: str = "") -> None:
        if text in self._told:
            return
        self._told.add(text)
        self._tell(Notice("warning", text, self._clock(), hint=hint))

    # Writing, on a thread of its own

    def _write(self) -> None:
        since_pruned = PRUNE_EVERY
        while True:
            batch = [self._jobs.get()]
            while not self._jobs.empty():
                batch.append(self._jobs.get())
            loops = [job for job in batch if isinstance(job, Loop)]
            since_pruned += len(loops)
            prune = since_pruned >= PRUNE_EVERY
            if prune:
                since_pruned = 0
            with self._lock:
                self._commit(loops, prune)
            for job in batch:
                if isinstance(job, threading.Event):
                    job.set()
            if None in batch:
                return

    def _commit(self, loops: list[Loop], prune: bool) -> None:
        for _ in range(2):
            try:
                with self._database as database:  # one transaction
                    database.executemany(
                        f"insert or replace into loops ({_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?)",
                        [_row(loop) for loop in loops],
                    )
                    if prune:
                        _prune(database, self._clock())
                return
            except sqlite3.DatabaseError as error:
                if not self._mend(error):
                    return
            except (ValueError, TypeError, OverflowError) as error:
                # Data that SQLite can't take is a bug, and no reason for this thread to end.
                self._say(f"A loop could not be kept: {error!r}")
                return

    def _mend(self, error: sqlite3.DatabaseError) -> bool:
        """After a failure: go on in a new file, or in memory. False if there is nothing to mend."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._say("Loops could not be kept: another program holds the history's file locked")
            return False
        with suppress(sqlite3.Error):
            self._database.close()
        if isinstance(error, sqlite3.OperationalError):  # disk full, I/O error, no right to write, file gone
            self._database = self._memory(error)
        else:
            self._set_aside(f"The history of loops is damaged ({error})", "damaged")
            self._database = self._open()
        return True


def read_loops(path: Path, since: int = 0, service: str | None = None) -> list[Loop]:
    """Loops from a store that an engine may be writing to, oldest first; none if there is no file yet.

    Raises DevloopError if the file can't be read.
    """
    if not path.exists():
        return []
    if what := _no_file(path):
        raise DevloopError(
            f"the history of loops can't be read: this is {what}, and no file",
            where=str(path),
            hint="remove it; an engine that runs has to be restarted then",
        )
    query, *values = _selection(since, service)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY)) as database:
            version = database.execute("pragma user_version").fetchone()[0]
            if version == 0:
                return []  # the engine has just made the file
            if version > SCHEMA:
                raise DevloopError(
                    "the history of loops was written by a newer devloop",
                    where=str(path),
                    hint="update devloop",
                )
            return _loops(database.execute(query, values))
    except sqlite3.Error as error:
        raise DevloopError(
            f"the history of loops can't be read: {error}",
            where=str(path),
            hint="`devloop up` sets a damaged file aside and begins a new one",
        ) from None


def _no_file(path: Path) -> str:
    """What is there in place of a file, in words; empty if it is one, or nothing is there."""
    if path.is_symlink():
        return "a link"  # which is not followed: a repository may have brought it
    what = kind(path)
    return "" if what == "a file" else what


class _NewerError(Exception):
    def __init__(self, version: int) -> None:
        super().__init__(f"The history of loops was written by a newer devloop (version {version})")
        self.version = version


def _connect(path: Path | None) -> sqlite3.Connection:
    return sqlite3.connect(path or ":memory:", timeout=BUSY, check_same_thread=False)


def _prepare(database: sqlite3.Connection) -> sqlite3.Connection:
    """Make the tables if the file is new. Closes the connection if that fails."""
    try:
        version = database.execute("pragma user_version").fetchone()[0]
        if version > SCHEMA:
            raise _NewerError(version)
        if version < SCHEMA:
            # An empty file has nothing to lose: no fsync while its tables are made, which is 10 ms and more.
            database.execute("pragma synchronous = off")
            database.execute("pragma journal_mode = wal")
            database.executescript(f"begin; {_TABLES} pragma user_version = {SCHEMA}; commit;")
        # With a write-ahead log, NORMAL survives any crash of the engine; a power cut costs the last loops.
        database.execute("pragma synchronous = normal")
        database.execute("select id, stamps from loops order by id desc limit 1").fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _prune(database: sqlite3.Connection, now: int) -> None:
    database.execute("delete from loops where started_at < ?", (now - KEEP_DAYS * 86_400 * 10**9,))
    database.execute(
        "delete from loops where id <= (select id from loops order by id desc limit 1 offset ?)", (KEEP_ROWS,)
    )


def _selection(since: int, service: str | None) -> tuple[Any, ...]:
    if service is None:
        return f"select {_COLUMNS} from loops where started_at >= ? order by started_at, id", since
    return (
        f"select {_COLUMNS} from loops where started_at >= ? and service = ? order by started_at, id",
        since,
        service,
    )


def _row(loop: Loop) -> tuple[object, ...]:
    return (
        loop.id,
        loop.service,
        str(loop.cause),
        str(loop.outcome),
        loop.started_at,
        json.dumps(loop.stamps),
        # A file's name may hold bytes that are no UTF-8, as surrogates; JSON's \u escapes keep them.
        json.dumps(loop.files),
        loop.detail.encode("utf-8", "replace").decode(),
    )


def _loops(rows: Iterable[tuple[Any, ...]]) -> list[Loop]:
    """Rows as loops. One that can't be read, of a kind that only a newer devloop knows, is passed over."""
    loops = []
    for number, service, cause, outcome, started_at, stamps, files, detail in rows:
        with suppress(ValueError, TypeError, AttributeError):
            times = {str(phase): int(at) for phase, at in json.loads(stamps).items()}
            names = tuple(map(str, json.loads(files)))
            loops.append(Loop(number, service, Cause(cause), Outcome(outcome), started_at, times, names, detail))
    return loops

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from devloop.errors import DevloopError
from devloop.metrics import store as module
from devloop.metrics.store import SCHEMA, LoopStore, read_loops
from devloop.protocol import Cause, Loop, Notice, Outcome

from .conftest import NOW

Make = Callable[..., Loop]


def open_store(path: Path, told: list[Notice] | None = None) -> LoopStore:
    return LoopStore(path, [].append if told is None else told.append, clock=lambda: NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "loops.sqlite3"


@pytest.fixture
def told() -> list[Notice]:
    return []


@pytest.fixture
def store(path: Path, told: list[Notice]) -> Iterator[LoopStore]:
    with closing(open_store(path, told)) as store:
        yield store


def test_what_was_added_comes_back_whole(store: LoopStore, loop: Make) -> None:
    kept = store.add(
        loop(
            outcome=Outcome.FAILED,
            cause=Cause.MANUAL,
            detail="exit code 1: “nö”",
            files=("a b.py", "not utf-8 \udcff.py"),
        )
    )
    assert store.loops() == [kept]
    assert list(store.loops()[0].stamps) == ["edited", "detected", "stopped", "settled", "spawned", "ready"]


def test_phases_of_another_kind_are_kept_too(store: LoopStore, loop: Make) -> None:
    kept = store.add(loop(stamps={"edited": 0, "build": 5, "push": 9, "rollout": 20}))
    assert store.loops() == [kept]


def test_recent_gives_the_last_of_one_service_oldest_first(store: LoopStore, loop: Make) -> None:
    for number in range(10):
        store.add(loop(number))
        store.add(loop(number, service="web"))
    found = store.recent("web", 3)
    assert [each.stamps["ready"] for each in found] == [7_000_000, 8_000_000, 9_000_000]
    assert {each.service for each in found} == {"web"}


def test_loops_selects_by_time_and_service(store: LoopStore, loop: Make) -> None:
    for after in (30, 10, 20):
        store.add(loop(started_at=NOW + after))
    store.add(loop(started_at=NOW + 25, service="web"))
    assert [each.started_at - NOW for each in store.loops()] == [10, 20, 25, 30]
    assert [each.started_at - NOW for each in store.loops(since=NOW + 20, service="api")] == [20, 30]


def test_ids_go_on_after_a_restart_and_after_pruning(path: Path, loop: Make) -> None:
    with closing(open_store(path)) as first:
        assert [first.add(loop()).id for _ in range(3)] == [1, 2, 3]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("delete from loops")
    with closing(open_store(path)) as second:
        assert second.last_id == 3
        assert second.add(loop()).id == 4


def test_an_id_of_the_engines_own_is_kept_and_the_same_again_replaces(store: LoopStore, loop: Make) -> None:
    first = store.add(loop(id=7))
    served = store.add(replace(first, stamps={**first.stamps, "served": 900_000_000}))
    assert store.loops() == [served]
    assert store.last_id == 7


def test_history_is_read_beside_a_writing_engine_and_without_one(path: Path, loop: Make) -> None:
    assert read_loops(path) == []
    with closing(open_store(path)) as store:
        kept = [store.add(loop()) for _ in range(3)]
        store.flush()
        assert read_loops(path) == kept
    assert read_loops(path) == kept
    assert read_loops(path, service="web") == []


def test_readers_and_the_writer_do_not_disturb_each_other(path: Path, store: LoopStore, loop: Make) -> None:
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(len(read_loops(path)))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(300):
        store.add(loop())
        if number % 50 == 0:
            store.flush()
    store.flush()
    stop.set()
    for reader in readers:
        reader.join()
    assert len(read_loops(path)) == 300
    assert seen


def test_old_loops_and_too_many_are_pruned(path: Path, loop: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_ROWS", 5)
    with closing(open_store(path)) as store:
        for _ in range(8):
            store.add(loop(started_at=NOW))
        store.add(loop(started_at=NOW - (module.KEEP_DAYS + 1) * 86_400 * 10**9))
    # The first batch of an engine prunes.
    with closing(open_store(path)) as store:
        store.add(loop(started_at=NOW))
        store.flush()
        kept = [each.id for each in store.loops()]
    assert len(kept) <= 5
    assert kept[-1] == 10
    assert 9 not in kept


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"this is no database at all, just some text" * 100,
        lambda data: data[:100] + b"\xff" * 3000 + data[3100:],
        lambda data: data[: len(data) // 2],
    ],
    ids=["text", "overwritten", "cut"],
)
def test_a_damaged_file_is_set_aside(
    path: Path, told: list[Notice], loop: Make, damage: Callable[[bytes], bytes]
) -> None:
    with closing(open_store(path)) as store:
        for _ in range(200):
            store.add(loop())
    path.write_bytes(damage(path.read_bytes()))
    with closing(open_store(path, told)) as store:
        store.loops()
        store.add(loop(service="new"))
        store.add(loop(service="new"))
        assert [each.service for each in store.recent("new", 5)] == ["new", "new"]
    assert len(read_loops(path, service="new")) == 2
    assert told[0].level == "warning"
    assert "damaged" in told[0].text
    assert (path.parent / "loops.sqlite3.damaged").exists()
    assert "loops.sqlite3.damaged" in told[0].hint


def test_a_file_of_a_newer_devloop_is_set_aside_and_not_lost(path: Path, told: list[Notice], loop: Make) -> None:
    for attempt in ("v9", "v9-2"):
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("create table if not exists future (x)")
            database.execute("pragma user_version = 9")
        with pytest.raises(DevloopError, match="newer"):
            read_loops(path)
        with closing(open_store(path, told)) as store:
            store.add(loop())
            assert len(store.loops()) == 1
        assert path.with_name(f"loops.sqlite3.{attempt}").exists()
        path.unlink()
    assert all("newer devloop" in each.text for each in told)


def test_without_a_place_to_write_the_engine_goes_on_and_says_so(
    tmp_path: Path, told: list[Notice], loop: Make
) -> None:
    (tmp_path / "file").touch()
    with closing(open_store(tmp_path / "file" / "loops.sqlite3", told)) as store:
        kept = store.add(loop())
        assert store.loops() == [kept]
    assert [each.text.partition(":")[0] for each in told] == ["The history of loops can't be kept"]


def test_a_file_damaged_while_in_use_costs_the_history_only(
    path: Path, store: LoopStore, told: list[Notice], loop: Make
) -> None:
    for _ in range(500):
        store.add(loop())
    store.flush()
    with closing(sqlite3.connect(path)) as other:
        other.execute("pragma wal_checkpoint(truncate)")
    path.write_bytes(b"\xff" * path.stat().st_size)
    for _ in range(3):
        last = store.add(loop())
        store.flush()
    assert last.id == 503
    assert store.recent("api", 1) in ([last], [])
    assert told
    last = store.add(loop())
    assert store.recent("api", 1) == [last]


def test_a_locked_file_is_told_once(
    path: Path, told: list[Notice], loop: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY", 0.01)
    with closing(open_store(path, told)) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("begin immediate")
            for _ in range(2):
                store.add(loop())
                store.flush()
            other.execute("rollback")
        kept = store.add(loop())
        assert store.loops() == [kept]
    assert [each.text for each in told] == ["Loops could not be kept: another program holds the history's file locked"]


def test_a_row_that_only_a_newer_devloop_understands_is_passed_over(path: Path, store: LoopStore, loop: Make) -> None:
    kept = store.add(loop())
    store.flush()
    with closing(sqlite3.connect(path)) as other, other:
        insert = "insert into loops values (?, 'api', ?, 'ok', 1, ?, '[]', '')"
        other.execute(insert, (8, "telepathy", "{}"))
        other.execute(insert, (9, "change", "[1, 2]"))
    assert store.loops() == [kept]


def test_data_that_sqlite_refuses_does_not_end_the_writer(store: LoopStore, told: list[Notice], loop: Make) -> None:
    store.add(loop(started_at=2**70))
    store.flush()
    kept = store.add(loop())
    assert store.loops() == [kept]
    assert "could not be kept" in told[0].text


def test_after_the_end_nothing_fails(path: Path, loop: Make) -> None:
    store = open_store(path)
    store.add(loop())
    store.close()
    store.close()
    store.add(loop())
    store.flush()
    assert store.recent("api", 1) == []
    assert len(read_loops(path)) == 1


@pytest.mark.slow
def test_what_was_flushed_survives_a_kill(path: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
from devloop.metrics.store import LoopStore
from devloop.protocol import Cause, Loop, Outcome
store = LoopStore(Path({str(path)!r}), clock=lambda: 2)
for _ in range(50):
    store.add(Loop(0, "api", Cause.CHANGE, Outcome.OK, 1, {{"edited": 0, "ready": 5}}))
store.flush()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], env=os.environ, check=False).returncode == -9
    assert len(read_loops(path)) == 50
    with closing(open_store(path)) as store:
        assert store.last_id == 50


def test_add_does_not_wait_for_the_disk(store: LoopStore, loop: Make) -> None:
    with store._lock:  # the disk is busy: the writer can't get on
        kept = [store.add(loop()) for _ in range(100)]
    assert len(store.loops()) == len(kept) == 100


def test_a_folder_in_its_place_is_named(path: Path, told: list[Notice]) -> None:
    path.mkdir()
    with closing(open_store(path, told)):
        pass
    assert [notice.text for notice in told] == [f"The history of loops can't be kept: {path} is a folder, and no file"]
    with pytest.raises(DevloopError, match="this is a folder, and no file"):
        read_loops(path)


def test_a_link_in_its_place_is_not_followed(path: Path, told: list[Notice], loop: Make) -> None:
    target = path.with_name("of-another-program")
    for broken in (None, b"no database"):
        if broken:
            target.write_bytes(broken)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        store = open_store(path, told)
        store.add(loop())
        store.close()
        assert path.is_symlink() and (target.read_bytes() == broken if broken else not target.exists())
        assert f"{path} is a link, and no file" in told[-1].text
    with pytest.raises(DevloopError, match="this is a link, and no file"):
        read_loops(path)


def test_the_schema_is_stamped(path: Path, store: LoopStore) -> None:
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("pragma user_version").fetchone() == (SCHEMA,)
        assert other.execute("pragma journal_mode").fetchone() == ("wal",)

"""What is watched, on a real file system with real inotify: links, editors, folders that come and go, polling."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from devloop.config.model import WatchMode
from devloop.local.watch import watcher as module
from devloop.local.watch.scope import WatchSpec
from devloop.local.watch.source import Kind
from devloop.local.watch.watcher import Watcher
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux'"),
]
DEADLINE = 20.0
LAST = "zz-last"


class Watched:
    """A watcher over a folder, and what it has told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.changes: list[tuple[str, str]] = []
        self.troubles: list[str] = []
        self._news = asyncio.Event()
        self.watcher = Watcher(root, self._changed, self._trouble)

    def _changed(self, service: str, files: tuple[str, ...], _edited: int, _detected: int) -> None:
        self.changes += [(service, file) for file in files]
        self._news.set()

    def _trouble(self, service: str, text: str, hint: str) -> None:
        self.troubles.append(f"{service}: {text}")
        self._news.set()

    async def start(self, *paths: str, own: tuple[str, ...] = (), base: str = ".", **options: Any) -> None:
        """Watch these, and one file more; see `since`."""
        (self.root / LAST).touch()
        spec = WatchSpec("api", self.root / base, tuple(self.root / path for path in (*paths, LAST)), **options)
        await self.watcher.watch([spec], [self.root / path for path in own])
        await self.learned()

    async def learned(self) -> None:
        assert self.watcher._learning is not None
        await self.watcher._learning

    async def until(self, condition: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"never so; {self.changes[:20]}, {self.troubles}")

    async def until_changed(self, file: str) -> None:
        await self.until(lambda: ("api", file) in self.changes)
        self.changes.clear()

    async def since(self) -> set[str]:
        """What has changed up to now: a file that is removed counts after the longest wait that there is."""
        (self.root / LAST).unlink()
        await self.until(lambda: ("api", LAST) in self.changes)
        found = {file for _, file in self.changes} - {LAST}
        self.changes.clear()
        (self.root / LAST).touch()
        await self.until_changed(LAST)
        return found


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    root = tmp_path / "project"
    root.mkdir()
    found = Watched(root)
    yield found
    await found.watcher.close()


def write(path: Path, text: str = "1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class TestLinks:
    async def test_a_linked_folder_and_a_linked_file_count_where_they_are(self, watched: Watched) -> None:
        lib = write(watched.root / "lib/util.py")
        other = write(watched.root / "other/one.py")
        write(watched.root / "app/main.py")
        (watched.root / "app/lib").symlink_to("../lib")
        (watched.root / "app/one.py").symlink_to("../other/one.py")
        await watched.start("app")
        lib.write_text("2")
        await watched.until_changed("lib/util.py")
        other.write_text("2")
        await watched.until_changed("other/one.py")
        write(watched.root / "other/two.py")
        write(watched.root / "lib/x.pyc")
        assert await watched.since() == set(), "what no link leads to, and what is ignored by its name"
        write(watched.root / "lib/deep/new.py")
        await watched.until_changed("lib/deep/new.py")

    async def test_circles_and_links_upwards_end(self, watched: Watched, tmp_path: Path) -> None:
        write(watched.root / "app/a/x.py")
        outside = write(tmp_path / "outside.py")
        (watched.root / "app/a/up").symlink_to("..")
        (watched.root / "app/self").symlink_to("self")
        (watched.root / "app/above").symlink_to(tmp_path)
        (watched.root / "app/root").symlink_to("/")
        await watched.start("app")
        outside.write_text("2")
        assert await watched.since() == set()
        (watched.root / "app/a/x.py").write_text("2")
        await watched.until_changed("app/a/x.py")

    async def test_a_link_made_later_and_one_that_is_swapped(self, watched: Watched, tmp_path: Path) -> None:
        one, two = write(tmp_path / "one/f.py"), write(tmp_path / "two/f.py", "other")
        write(watched.root / "app/main.py")
        await watched.start("app")
        link = watched.root / "app/lib"
        link.symlink_to(tmp_path / "one")
        await watched.until_changed("app/lib")
        await settled(watched)
        one.write_text("2")
        await watched.until_changed(str(one))
        (tmp_path / "temporary").symlink_to(tmp_path / "two")
        (tmp_path / "temporary").rename(link)
        await watched.until_changed("app/lib")
        await settled(watched)
        one.write_text("3")
        assert not {file for file in await watched.since() if file == str(one)}
        two.write_text("3")
        await watched.until_changed(str(two))

    async def test_a_named_folder_behind_a_swapped_link(self, watched: Watched) -> None:
        for release in ("1", "2"):
            write(watched.root / f"releases/{release}/src/app.py", release)
        current = watched.root / "current"
        current.symlink_to("releases/1")
        await watched.start("current/src")
        (watched.root / "releases/2/src/app.py").write_text("2b")
        assert await watched.since() == set()
        swap(current, "releases/2")
        await watched.until_changed("current")
        await settled(watched)
        (watched.root / "releases/2/src/app.py").write_text("2c")
        await watched.until_changed("releases/2/src/app.py")

    async def test_a_swap_is_one_change(self, watched: Watched) -> None:
        """What a link leads to for the first time is no change of its own, that would restart once more."""
        for release in ("1", "2", "3"):
            write(watched.root / f"releases/{release}/app.py", release)
        write(watched.root / "app/main.py")
        for link in ("current", "app/lib"):
            (watched.root / link).symlink_to(watched.root / "releases/1")
        await watched.start("current", "app")
        swap(watched.root / "current", str(watched.root / "releases/2"))
        await watched.until(lambda: watched.changes)
        assert await watched.since() == {"current"}
        swap(watched.root / "app/lib", str(watched.root / "releases/3"))
        await watched.until(lambda: watched.changes)
        assert await watched.since() == {"app/lib"}
        write(watched.root / "releases/3/app.py", "3b")
        await watched.until_changed("releases/3/app.py")
        write(watched.root / "releases/2/new.py")
        await watched.until_changed("releases/2/new.py")

    async def test_a_link_that_becomes_a_folder_is_one_change(self, watched: Watched) -> None:
        write(watched.root / "releases/1/app.py")
        (watched.root / "current").symlink_to("releases/1")
        await watched.start("current")
        write(watched.root / "new/app.py")
        (watched.root / "current").unlink()
        (watched.root / "new").rename(watched.root / "current")
        await watched.until(lambda: watched.changes)
        assert await watched.since() == {"current"}
        write(watched.root / "current/app.py", "2")
        await watched.until_changed("current/app.py")

    async def test_a_configmap(self, watched: Watched) -> None:
        volume = watched.root / "config"
        write(volume / "..2026_1/app.yaml", "a: 1")
        (volume / "..data").symlink_to("..2026_1")
        (volume / "app.yaml").symlink_to("..data/app.yaml")
        await watched.start("config/app.yaml")
        write(volume / "..2026_2/app.yaml", "a: 2")
        assert await watched.since() == set()
        swap(volume / "..data", "..2026_2")
        shutil.rmtree(volume / "..2026_1")
        await watched.until(lambda: any("..data" in file for _, file in watched.changes))

    async def test_a_broken_link_counts_once_its_target_is_there(self, watched: Watched) -> None:
        (watched.root / "app").mkdir()
        (watched.root / "app/conf.json").symlink_to("../generated/conf.json")
        await watched.start("app")
        write(watched.root / "generated/conf.json")
        await watched.until_changed("generated/conf.json")


class TestNames:
    async def test_what_is_named_wins_over_gitignore(self, watched: Watched) -> None:
        (watched.root / ".git").mkdir()
        write(watched.root / ".gitignore", "out/\n/gen/*\n*.log\nlocal.json\n")
        for name in ("out/a.js", "gen/b.js", "dist/c.js", "local.json", "build/d"):
            write(watched.root / name)
        write(watched.root / "inner/.gitignore", "*\n!.gitignore\n")
        write(watched.root / "inner/e")
        names = ("out/a.js", "gen/b.js", "dist/c.js", "local.json", "build/d", "inner/e")
        await watched.start("out", "gen", "dist", "local.json", "build", "inner")
        for name in names:
            write(watched.root / name, "2")
            await watched.until_changed(name)
        write(watched.root / "out/x.log")
        write(watched.root / "inner/.gitignore", "*\n")
        assert await watched.since() == set()

    async def test_ignore_holds_everywhere(self, watched: Watched) -> None:
        ignored = (
            "shared/generated/a.py",
            "shared/x.tmp",
            "shared/top/a",
            "api/top/a",
            "shared/sub/a",
            "tools/a.py",
        )
        for name in (*ignored, "shared/deep/top/a", "api/a.py"):
            write(watched.root / name)
        patterns = ("generated/", "*.tmp", "/top/", "../shared/sub/", "../tools/a.py")
        await watched.start("api", "shared", "tools", base="api", ignore=patterns)
        for name in ignored:
            write(watched.root / name, "2")
        assert await watched.since() == set()
        for name in ("shared/deep/top/a", "api/a.py"):
            write(watched.root / name, "2")
            await watched.until_changed(name)

    async def test_the_projects_own_files_count_where_they_are_named(self, watched: Watched) -> None:
        own = ("devloop.toml", ".env", "more/extra.toml")
        for name in own:
            write(watched.root / name)
        await watched.start(".", own=own)
        for name in own:
            write(watched.root / name, "2")
        assert await watched.since() == set()
        await watched.start(".", ".env", own=own)
        write(watched.root / ".env", "3")
        await watched.until_changed(".env")

    async def test_a_changed_gitignore_takes_effect_and_is_no_change(self, watched: Watched) -> None:
        write(watched.root / ".gitignore", "data/\n")
        write(watched.root / "data/deep/a")
        await watched.start(".")
        write(watched.root / "data/deep/a", "2")
        assert await watched.since() == set()
        source: Any = watched.watcher._source
        write(watched.root / ".gitignore", "*.o\n")
        await until(lambda: str(watched.root / "data/deep") in source._numbers)
        write(watched.root / "data/deep/a", "3")
        await watched.until_changed("data/deep/a")

    async def test_what_cannot_be_watched_is_said(self, watched: Watched) -> None:
        os.mkfifo(watched.root / "pipe")
        await watched.start("pipe", "scr")
        assert any("pipe can't be watched" in text for text in watched.troubles)
        assert any("there is no scr" in text for text in watched.troubles)


EDITORS = {
    "vim": (".app.py.swp", ".app.py.swo", ".app.py.swx", "app.py~", "4913"),
    "emacs": ("#app.py#", "app.py~", ".app.py~"),
    "jetbrains": ("app.py___jb_tmp___", "app.py___jb_old___"),
    "kate": (".app.py.kate-swp",),
    "others": (".DS_Store", ".nfs00000000012ab", ".~lock.table.ods#", ".goutputstream-ABC123", ".syncthing.app.py.tmp"),
}


class TestEditors:
    @pytest.mark.parametrize("editor", EDITORS)
    async def test_side_files_are_no_change(self, watched: Watched, editor: str) -> None:
        write(watched.root / "app.py")
        await watched.start(".")
        for name in EDITORS[editor]:
            write(watched.root / name)
            write(watched.root / name, "2")
        for name in EDITORS[editor][::2]:
            (watched.root / name).unlink()
        if editor == "emacs":
            (watched.root / ".#app.py").symlink_to("me@host.41:1")
        assert await watched.since() == set()

    @pytest.mark.parametrize("name", ["sedX2bQ1z", "app.py.Ab12Cd", "tmpq8_yx1", ".app.py.Zx81Qw"])
    async def test_a_save_by_way_of_a_new_file_is_one_change(self, watched: Watched, name: str) -> None:
        write(watched.root / "app.py")
        await watched.start(".")
        write(watched.root / name, "2").rename(watched.root / "app.py")
        assert await watched.since() == {"app.py"}

    async def test_a_save_that_renames_the_old_file_first_is_one_change(self, watched: Watched) -> None:
        """Vim with `backupcopy=no`, Emacs at the first save."""
        path = write(watched.root / "app.py")
        await watched.start(".")
        path.rename(watched.root / "app.py~")
        path.write_text("2")
        assert await watched.since() == {"app.py"}
        path.rename(watched.root / "app.py~")
        path.write_text("2")
        assert await watched.since() == set(), "the same content as before"

    async def test_a_new_file_and_a_hard_link_count(self, watched: Watched, tmp_path: Path) -> None:
        await watched.start(".")
        write(watched.root / "new.py")
        await watched.until_changed("new.py")
        os.link(write(tmp_path / "elsewhere.py"), watched.root / "linked.py")
        await watched.until_changed("linked.py")
        (watched.root / "linked.py").unlink()
        await watched.until_changed("linked.py")


class TestFolders:
    async def test_moved_away_and_back(self, watched: Watched, tmp_path: Path) -> None:
        for number in range(30):
            write(watched.root / f"src/p{number % 3}/f{number}.py")
        names = {f"src/p{number % 3}/f{number}.py" for number in range(30)}
        await watched.start("src")
        (watched.root / "src/p0").rename(tmp_path / "p0")
        assert await watched.since() == {name for name in names if "/p0/" in name}
        write(tmp_path / "p0/f0.py", "while it is away")
        assert await watched.since() == set(), "it is not watched elsewhere"
        (tmp_path / "p0").rename(watched.root / "src/p0")
        assert await watched.since() == {name for name in names if "/p0/" in name}
        write(watched.root / "src/p0/f0.py", "back")
        await watched.until_changed("src/p0/f0.py")

    async def test_a_named_folder_that_goes_and_comes_back(self, watched: Watched, tmp_path: Path) -> None:
        write(watched.root / "app/src/a.py")
        await watched.start("app/src")
        shutil.rmtree(watched.root / "app")
        await watched.until_changed("app/src/a.py")
        await settled(watched)
        write(watched.root / "app/src/b.py")
        await watched.until_changed("app/src/b.py")
        await settled(watched)
        (watched.root / "app").rename(tmp_path / "app")
        await watched.until_changed("app/src/b.py")
        (tmp_path / "app").rename(watched.root / "app")
        await watched.until_changed("app/src/b.py")

    async def test_one_that_is_not_there_yet(self, watched: Watched) -> None:
        await watched.start("one/two/three", "deep/er/file.txt")
        write(watched.root / "one/two/three/a.py")
        await watched.until_changed("one/two/three/a.py")
        await settled(watched)
        write(watched.root / "one/two/three/a.py", "2")
        await watched.until_changed("one/two/three/a.py")
        write(watched.root / "deep/er/file.txt")
        await watched.until_changed("deep/er/file.txt")

    async def test_lost_events_are_made_up_for(self, watched: Watched, tmp_path: Path) -> None:
        for name in ("a", "b", "c", "d/e", "moved/f"):
            write(watched.root / f"src/{name}")
        await watched.start("src")
        source: Any = watched.watcher._source
        source.pause()
        write(watched.root / "src/a", "2")
        (watched.root / "src/b").unlink()
        shutil.rmtree(watched.root / "src/d")
        (watched.root / "src/moved").rename(tmp_path / "moved")
        write(watched.root / "src/moved/f", "2")
        write(watched.root / "src/new/g")
        os.read(source._inotify.fileno(), 1 << 20)  # lost
        source.resume()
        watched.watcher._deliver([(Kind.LOST, "")])
        expected = {"src/a", "src/b", "src/d/e", "src/moved/f", "src/new/g"}
        await watched.until(lambda: {file for _, file in watched.changes} == expected)
        watched.changes.clear()
        write(watched.root / "src/new/g", "2")
        await watched.until_changed("src/new/g")
        write(watched.root / "src/moved/f", "3")
        await watched.until_changed("src/moved/f")

    async def test_others_have_their_turn_meanwhile(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(600):
            write(watched.root / f"src/p{number % 20}/f{number}.py")
        await watched.start("src")
        monkeypatch.setattr(module, "SLICE", 0.0)  # each step is a slice
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            if len(watched.changes) < 600:
                loop.call_soon(turn)

        loop = asyncio.get_running_loop()
        loop.call_soon(turn)
        shutil.rmtree(watched.root / "src")
        await watched.until(lambda: len({file for _, file in watched.changes}) == 600)
        assert turns > 600

    async def test_the_work_is_linear_in_the_files(self, watched: Watched) -> None:
        counts = []

        def told(part: str) -> set[str]:
            return {file for _, file in watched.changes if f"/{part}" in file}

        for folder, size in (("few", 400), ("many", 1600)):
            for number in range(size):
                write(watched.root / f"{folder}/p{number // 4}/f{number}.py")
            await watched.start(folder)
            calls = 0

            def call(_frame: object, event: str, _argument: object) -> None:
                nonlocal calls
                calls += event in ("call", "c_call")

            shutil.move(watched.root / folder, watched.root / ".git")
            sys.setprofile(call)
            try:
                await watched.until(lambda n=size: len(told("p")) == n)
            finally:
                sys.setprofile(None)
            shutil.rmtree(watched.root / ".git")
            watched.changes.clear()
            counts.append(calls)
        assert counts[1] < 7 * counts[0], "four times as many files"


class TestPolling:
    async def test_on_request(self, watched: Watched) -> None:
        path = write(watched.root / "src/a.py")
        write(watched.root / "src/node_modules/m.js")
        await watched.start("src", mode=WatchMode.POLL, poll=20_000_000)
        assert watched.watcher._source is not None
        watched.watcher._source.close()  # there are no events
        watched.watcher._source = None
        path.write_text("2")
        await watched.until_changed("src/a.py")
        write(watched.root / "src/deep/b.py")
        await watched.until_changed("src/deep/b.py")
        write(watched.root / "src/node_modules/m.js", "2")
        path.touch()
        path.unlink()
        await watched.until(lambda: watched.changes)
        assert watched.changes == [("api", "src/a.py")]

    async def test_by_itself_where_events_do_not_come(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(watched.root / "share/a.py")
        mounts = module.Mounts(f"36 35 98:0 / {watched.root}/share rw - fuse.sshfs host:/ rw\n")
        monkeypatch.setattr(module, "Mounts", lambda: mounts)
        await watched.start(".")
        assert any("share is on sshfs" in text and "polled every 0.5 s" in text for text in watched.troubles)
        assert watched.watcher._source is not None
        watched.watcher._source.close()
        watched.watcher._source = None
        path.write_text("2")
        await watched.until_changed("share/a.py")

    async def test_when_the_limits_are_used_up(self, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
        from devloop.local.watch.inotify import InotifySource
        from devloop.local.watch.source import WatchLimitError

        def refuse(*_: object) -> None:
            raise WatchLimitError("max_user_watches")

        path = write(watched.root / "src/a.py")
        await watched.start("src")
        monkeypatch.setattr(InotifySource, "add", refuse)
        write(watched.root / "src/new/b.py")
        await watched.until(lambda: any("max_user_watches" in text for text in watched.troubles))
        await watched.until_changed("src/new/b.py")
        path.write_text("2")
        await watched.until_changed("src/a.py")


def swap(link: Path, target: str) -> None:
    """As `ln -sfn` and the kubelet do."""
    temporary = link.with_name(f"{link.name}_tmp")
    temporary.symlink_to(target)
    temporary.rename(link)


async def settled(watched: Watched) -> None:
    """Everything that was reported is looked at: there is no event for that, so it is asked for."""
    await until(lambda: not watched.watcher.busy and not watched.watcher._due)
    watched.changes.clear()

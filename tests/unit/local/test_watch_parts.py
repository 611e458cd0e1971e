"""What is ignored, what has changed, and when git is at work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

from devloop.local.git import LONGEST, Repository
from devloop.local.watch.fingerprint import MAX_SIZE, Fingerprints
from devloop.local.watch.ignore import Ignore
from devloop.local.watch.mounts import Mounts
from devloop.local.watch.patterns import Patterns
from devloop.local.watch.scope import Scope, WatchSpec
from devloop.local.watch.survey import Found, survey
from devloop.local.watch.watcher import Watcher


class TestIgnore:
    @pytest.mark.parametrize(
        "path",
        ["node_modules/", "a/__pycache__/", ".git/", "x.pyc", ".main.py.swp", "main.py~", "dist/", ".#x"],
    )
    def test_the_usual(self, tmp_path: Path, path: str) -> None:
        ignore = Ignore(tmp_path, (), gitignore=True)
        assert ignore.ignored(tmp_path / path, folder=path.endswith("/"))

    def test_without_gitignore_only_editors_and_version_control(self, tmp_path: Path) -> None:
        (tmp_path / ".gitignore").write_text("*.gen\n")
        ignore = Ignore(tmp_path, (), gitignore=False)
        assert not ignore.ignored(tmp_path / "dist", folder=True)
        assert not ignore.ignored(tmp_path / "x.gen", folder=False)
        assert ignore.ignored(tmp_path / ".git", folder=True)

    def test_nearer_gitignores_and_the_services_own_win(self, tmp_path: Path) -> None:
        (tmp_path / ".git").mkdir()
        (tmp_path / ".gitignore").write_text("*.gen\n/top.txt\n")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub/.gitignore").write_text("!keep.gen\n")
        ignore = Ignore(tmp_path / "sub", ("*.log", "!important.log", "!b.gen"), gitignore=True)
        assert ignore.ignored(tmp_path / "sub/a.gen", folder=False)
        assert not ignore.ignored(tmp_path / "sub/keep.gen", folder=False)
        assert not ignore.ignored(tmp_path / "sub/b.gen", folder=False)
        assert ignore.ignored(tmp_path / "top.txt", folder=False)
        assert not ignore.ignored(tmp_path / "sub/top.txt", folder=False), "anchored at its own folder"
        assert ignore.ignored(tmp_path / "sub/x.log", folder=False)
        assert not ignore.ignored(tmp_path / "sub/important.log", folder=False)

    def test_a_gitignore_above_the_repository_does_not_count(self, tmp_path: Path) -> None:
        (tmp_path / ".gitignore").write_text("*\n")
        (tmp_path / "repo/.git").mkdir(parents=True)
        assert not Ignore(tmp_path / "repo", (), gitignore=True).ignored(tmp_path / "repo/a.py", folder=False)

    def test_a_changed_gitignore_is_read_again(self, tmp_path: Path) -> None:
        ignore = Ignore(tmp_path, (), gitignore=True)
        assert not ignore.ignored(tmp_path / "a.gen", folder=False)
        (tmp_path / ".gitignore").write_text("*.gen\n")
        ignore.forget()
        assert ignore.ignored(tmp_path / "a.gen", folder=False)


class TestScope:
    def test_folders_files_and_what_lies_in_ignored_folders(self, tmp_path: Path) -> None:
        (tmp_path / "src/node_modules/m").mkdir(parents=True)
        (tmp_path / "src/a.py").write_text("")
        (tmp_path / "src/node_modules/m/i.js").write_text("")
        scope = Scope(WatchSpec("api", tmp_path, (tmp_path / "src", tmp_path / "one.txt")))
        armed: list[str] = []
        found = [each for each in survey(scope.roots, [scope], Fingerprints(), armed.append) if each]
        assert (armed, found) == ([f"{tmp_path}/src"], [(Found.NEW, f"{tmp_path}/src/a.py")])
        assert scope.watches_folder(tmp_path / "src/deep")
        assert not scope.watches_folder(tmp_path / "src/node_modules/m")
        assert not scope.watches_folder(tmp_path)
        assert scope.watches_file(tmp_path / "one.txt"), "a named file counts before it exists"
        assert not scope.watches_file(tmp_path / "two.txt")


class TestFingerprints:
    def test_content_and_the_executable_bit_count_and_the_time_does_not(self, tmp_path: Path) -> None:
        prints, path = Fingerprints(), tmp_path / "a"
        path.write_text("one")
        assert prints.changed(path), "never seen before"
        path.touch()
        assert not prints.changed(path)
        path.write_text("two")
        assert prints.changed(path)
        path.chmod(0o755)
        assert prints.changed(path)
        path.unlink()
        assert prints.changed(path)
        assert not prints.changed(path), "a file that came and went between two looks"

    def test_a_link_counts_by_its_target_and_what_that_holds(self, tmp_path: Path) -> None:
        prints, link = Fingerprints(), tmp_path / "link"
        for name in ("a", "b"):
            (tmp_path / name).write_text("same")
        link.symlink_to("a")
        assert prints.changed(link)
        link.unlink()
        link.symlink_to("b")
        assert prints.changed(link)
        (tmp_path / "b").write_text("new")
        assert prints.changed(link)
        link.unlink()
        link.symlink_to("link")
        assert prints.changed(link)

    def test_what_is_too_large_to_read_counts_by_size_and_time(self, tmp_path: Path) -> None:
        prints, path = Fingerprints(), tmp_path / "big"
        with path.open("wb") as file:
            file.truncate(MAX_SIZE + 1)
        assert prints.changed(path)
        assert not prints.changed(path)
        os.utime(path, ns=(1, 1))
        assert prints.changed(path)

    def test_fresh_files_are_not_learned_and_new_ones_are_reported(self, tmp_path: Path) -> None:
        prints = Fingerprints()
        old, new = tmp_path / "old", tmp_path / "new"
        old.write_text("1")
        os.utime(old, (1, 1))
        since = time.time_ns() - 1_000_000_000
        new.write_text("1")
        assert prints.learn([old, new, tmp_path / "none"], since) == [str(new)]
        assert not prints.changed(old)
        assert prints.changed(new), "its event may still be on the way"


class TestRepository:
    def test_busy_while_there_is_a_lock(self, tmp_path: Path) -> None:
        (tmp_path / ".git").mkdir()
        (tmp_path / "deep").mkdir()
        repository = Repository(tmp_path / "deep")
        assert repository.busy_until(5) is None
        lock = tmp_path / ".git/index.lock"
        lock.touch()
        again = repository.busy_until(5)
        assert again is not None and again > 5
        old = time.time_ns() - LONGEST - 1
        os.utime(lock, ns=(old, old))
        assert repository.busy_until(5) is None, "left by a git that is gone"

    def test_a_worktree(self, tmp_path: Path) -> None:
        (tmp_path / "main/.git/worktrees/w").mkdir(parents=True)
        (tmp_path / "w").mkdir()
        (tmp_path / "w/.git").write_text(f"gitdir: {tmp_path}/main/.git/worktrees/w\n")
        repository = Repository(tmp_path / "w")
        (tmp_path / "main/.git/worktrees/w/index.lock").touch()
        assert repository.busy_until(5) is not None

    def test_no_repository(self, tmp_path: Path) -> None:
        assert Repository(tmp_path).busy_until(5) is None


class TestMounts:
    LINES = "\n".join(
        (
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw",
            "30 22 0:40 / /home/me/far rw shared:1 - nfs4 server:/export rw",
            "31 22 0:41 / /mnt/c rw - 9p drvfs rw,aname=drvfs",
            r"32 22 0:42 / /home/me/my\040share rw - fuse.sshfs host: rw",
            "33 22 0:43 / /home/me/secret rw - fuse.gocryptfs /x rw",
            "34 22 0:44 / /home/me/hidden rw - nfs4 server:/old rw",
            "35 34 8:2 / /home/me/hidden rw - ext4 /dev/sdb1 rw",
            "36 22 0:45 / /image rw - overlay overlay rw,lowerdir=/not/there,upperdir=/u,workdir=/w",
            "37 22 0:46 / /layered rw - overlay overlay rw,lowerdir=/:/usr,upperdir=/u,workdir=/w",
        )
    )

    def test_which_report_everything(self) -> None:
        mounts = Mounts(self.LINES)
        assert mounts.silent("/home/me") == {"/home/me/far": "NFS", "/home/me/my share": "sshfs"}
        assert mounts.silent("/mnt/c/src/deep") == {"/mnt/c/src/deep": "9p"}
        assert mounts.silent("/image") == {}, "nobody here sees its lower layer"
        assert list(mounts.silent("/layered/app")) == ["/layered/app"]
        assert mounts.silent("/home/me/farther") == {}

    def test_without_proc(self) -> None:
        assert Mounts("").silent("/x") == {}


class TestPatterns:
    @pytest.mark.parametrize(
        "pattern",
        [
            "*.log",
            "a",
            "a/",
            "/a",
            "a/b",
            "a/**",
            "**/b",
            "a/**/c",
            "*",
            "[ab]c",
            "!a",
            r"\#x#",
            "a?c",
            "b/*.txt",
            "*/",
        ],
    )
    def test_as_pathspec_says_level_by_level(self, pattern: str) -> None:
        spec, ours = GitIgnoreSpec.from_lines([pattern]), Patterns([pattern])
        for path in ("a", "b", "a/b", "b/a", "a/b/c", "ac", "bc", "x.log", "a/x.log", "#x#", "abc", "b/x.txt", "c/b"):
            for folder in (True, False):
                above = path.rpartition("/")[0]
                if above and spec.check_file(f"{above}/").include is not None:
                    continue  # it is not asked about
                expected = spec.check_file(path + "/" * folder).include
                assert ours.verdict(path, folder=folder) is expected, (path, folder)


async def test_what_a_poll_finds_while_it_is_told_does_not_disturb(tmp_path: Path) -> None:
    told: list[str] = []

    def on_trouble(_: str, text: str, __: str) -> None:
        scope.silent[f"{tmp_path}/{len(told)}"] = "a disk"  # as the poller's thread does, at any moment
        scope.refused[f"{tmp_path}/r{len(told)}"] = "why"
        told.append(text)

    watcher = Watcher(tmp_path, lambda *_: None, on_trouble)
    watcher._take([WatchSpec("api", tmp_path, (tmp_path,))], [])
    scope = watcher._by_name["api"]
    scope.silent[str(tmp_path)], scope.refused[f"{tmp_path}/x"] = "a disk", "why"
    watcher._tell_all()
    assert len(told) == 3

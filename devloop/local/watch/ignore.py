"""What is not watched, in the syntax of gitignore(5).

Later sources win over earlier ones, as there: what devloop always leaves out, git's own lists and the .gitignore
files from the repository's root down, and last the service's own `ignore`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from devloop.local.watch.patterns import Patterns
from devloop.paths import SMALL, read_text

ALWAYS = (
    ".git/",
    ".hg/",
    ".svn/",
    ".jj/",
    ".devloop/",
    # Says what is ignored; it is read again when it changes, and no program runs it.
    ".gitignore",
    # Vim: swap files, the file that it tries a folder's rights with, backups.
    ".*.sw[a-z]",
    ".sw[a-p]",
    "*.sw[opx]",
    "*~",
    "4913",
    # Emacs: auto-save, lock (a broken link).
    "\\#*#",
    ".#*",
    # JetBrains, Kate, gedit, VS Code, Sublime Text, Qt Creator.
    "*___jb_tmp___",
    "*___jb_old___",
    "*___jb_bak___",
    "*.kate-swp",
    ".goutputstream-*",
    "*.vsctmp",
    ".subl*.tmp",
    "*.autosave",
    # LibreOffice, Microsoft Office.
    ".~lock.*",
    "~$*",
    # What NFS and FUSE make of an open file that is removed.
    ".nfs[0-9a-fA-F]*",
    ".fuse_hidden*",
    # Desktops and file synchronisation.
    ".DS_Store",
    "._*",
    "Thumbs.db",
    "desktop.ini",
    ".directory",
    ".syncthing.*",
    "~syncthing~*",
    ".stfolder/",
    ".stversions/",
    ".dropbox",
    ".dropbox.cache/",
    # Editors' own settings.
    ".idea/",
    ".vscode/",
    ".vs/",
    ".zed/",
    ".fleet/",
)
USUAL = (
    "node_modules/",
    "__pycache__/",
    "*.py[cod]",
    ".venv/",
    "venv/",
    ".tox/",
    ".nox/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".pytest_cache/",
    ".hypothesis/",
    "*.egg-info/",
    "build/",
    "dist/",
    "target/",
    ".next/",
    ".gradle/",
)
"""Build folders and caches; `gitignore = false` switches these and git's lists off."""


@lru_cache(maxsize=1)
def _builtin() -> tuple[Patterns, Patterns]:
    return Patterns(ALWAYS), Patterns(USUAL)


class Ignore:
    """Decides for the paths below the watched folders of one service.

    Paths are real ones. `root` is the watched folder that a path lies in: it is watched itself, whatever a list
    of git's says of it, and `shown` is where it seems to lie if a link leads to it.
    """

    def __init__(self, base: Path | str, patterns: Sequence[str], *, gitignore: bool) -> None:
        self._base = os.fspath(base)
        self._gitignore = gitignore
        self._always, self._usual = _builtin()
        self._own, self._elsewhere = _own(self._base, patterns)
        self._chains: dict[tuple[str, str], tuple[tuple[str, Patterns], ...]] = {}

    def ignored(self, path: Path | str, *, folder: bool, root: str = "", shown: str = "") -> bool:
        """Whether this path itself is left out; that no folder above it is, the caller has made sure of."""
        path = os.fspath(path)
        at = path.rfind("/")
        name = path[at + 1 :]
        verdict = self._always.verdict(name, folder=folder)
        if self._gitignore and not verdict:  # `!.gitignore` is about what git keeps
            verdict = self._usual.verdict(name, folder=folder)
            for base, patterns in self._chain(path[:at] or "/", root):
                found = patterns.verdict(_relative(path, base), folder=folder)
                verdict = verdict if found is None else found
        if shown and shown != root:
            path = shown + path[len(root) :]
        if self._own:
            # Outside of the service's folder, an anchored pattern means the watched folder.
            base = self._base if _below(path, self._base) else (shown or root or self._base)
            found = self._own.verdict(_relative(path, base), folder=folder)
            verdict = verdict if found is None else found
        for base, patterns in self._elsewhere:
            if _below(path, base):
                found = patterns.verdict(_relative(path, base), folder=folder)
                verdict = verdict if found is None else found
        return bool(verdict)

    def forget(self) -> None:
        """A list of git's has changed: read them all again."""
        _read_gitignore.cache_clear()
        self._chains.clear()

    def _chain(self, folder: str, root: str) -> tuple[tuple[str, Patterns], ...]:
        """git's lists that count for what lies in `folder`, outermost first."""
        found = self._chains.get((folder, root))
        if found is None:
            here = _read_gitignore(folder)
            if here and root and _below(root, folder):
                here = here.without("" if root == folder else _relative(root, folder))
            top = os.path.lexists(f"{folder}/.git")
            above: tuple[tuple[str, Patterns], ...] = ()
            if top:
                excludes = _read_excludes(folder)
                if excludes and root and _below(root, folder):
                    excludes = excludes.without("" if root == folder else _relative(root, folder))
                above = ((folder, excludes),) if excludes else ()
            elif folder != "/":
                above = self._chain(os.path.dirname(folder), root)
            found = self._chains[folder, root] = (*above, (folder, here)) if here else above
        return found


def _own(base: str, patterns: Sequence[str]) -> tuple[Patterns, list[tuple[str, Patterns]]]:
    """The patterns of `ignore`, and those that begin with `../` or `./` with the folder that they mean."""
    here: list[str] = []
    elsewhere: list[tuple[str, Patterns]] = []
    for pattern in patterns:
        negated, text = pattern.startswith("!"), pattern.removeprefix("!")
        folder = base
        while text.startswith(("./", "../")):
            if text.startswith("../"):
                folder = os.path.dirname(folder)
            text = text.partition("/")[2]
        if text == pattern.removeprefix("!"):
            here.append(pattern)
        elif folder == base:
            here.append(f"{'!' if negated else ''}/{text}")
        else:
            elsewhere.append((folder, Patterns([f"{'!' if negated else ''}/{text}"])))
    return Patterns(here), elsewhere


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder.endswith("/") else f"{folder}/")


def _relative(path: str, base: str) -> str:
    return path[len(base) + (not base.endswith("/")) :]


@lru_cache(maxsize=4096)
def _read_gitignore(folder: str) -> Patterns | None:
    return _read(f"{folder}/.gitignore")


def _read(file: str) -> Patterns | None:
    try:
        text = read_text(Path(file), SMALL)
    except OSError:
        return None
    return Patterns(text.splitlines()) or None


@lru_cache(maxsize=64)
def _read_excludes(top: str) -> Patterns | None:
    """What git leaves out besides: core.excludesFile, then the repository's info/exclude."""
    lines: list[str] = []
    git = Path(top) / ".git"
    try:
        if git.is_file():  # a worktree or a submodule: gitrepository-layout(5)
            git = Path(top) / read_text(git, SMALL).removeprefix("gitdir:").strip()
        common = git / "commondir"
        if common.is_file():
            git = git / read_text(common, SMALL).strip()
    except OSError:
        return None
    for file in (_excludes_file(git), git / "info" / "exclude"):
        try:
            lines += read_text(file, SMALL).splitlines()
        except OSError:
            continue
    return Patterns(lines) or None


def _excludes_file(git: Path) -> Path:
    """core.excludesFile as git-config(1) has it, without asking git: 3 ms, and it need not be here."""
    home = Path(os.environ.get("HOME") or "/")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "git"
    found = config / "ignore"
    for file in (config / "config", home / ".gitconfig", git / "config"):
        try:
            text = read_text(file, SMALL)
        except OSError:
            continue
        for section in re.split(r"^\s*(?=\[)", text, flags=re.MULTILINE):
            if section.lower().startswith("[core]"):
                for value in re.findall(r'^\s*excludesfile\s*=\s*"?([^"\n]*?)"?\s*$', section, re.M | re.I):
                    found = home / value[2:] if value.startswith("~/") else Path(value)
    return found

"""What is not watched: gitignore syntax, by pathspec.

Later sources win over earlier ones, as in gitignore(5): what devloop always ignores, the .gitignore files
from the repository's root down, and last the service's own `ignore`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from pathspec import GitIgnoreSpec

ALWAYS = (
    ".git/",
    ".hg/",
    ".svn/",
    ".jj/",
    ".devloop/",
    # What editors write beside the file that is edited.
    "*~",
    "*.sw[a-p]",
    "4913",
    ".#*",
    "#*#",
    "*___jb_tmp___",
    "*___jb_old___",
    ".goutputstream-*",
    ".DS_Store",
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
    ".idea/",
    ".vscode/",
)
"""Build folders and caches; `gitignore = false` switches these and the .gitignore files off."""


class Ignore:
    """Decides for the paths below the watched folders of one service."""

    def __init__(self, base: Path, patterns: Sequence[str], *, gitignore: bool) -> None:
        self._base = base
        self._gitignore = gitignore
        self._builtin = GitIgnoreSpec.from_lines([*ALWAYS, *(USUAL if gitignore else ())])
        self._own = GitIgnoreSpec.from_lines(patterns)
        self._by_folder: dict[Path, tuple[tuple[Path, GitIgnoreSpec], ...]] = {}

    def ignored(self, path: Path, *, folder: bool) -> bool:
        """Whether this path itself is ignored; that no folder above it is, the caller has made sure of."""
        mark = "/" if folder else ""
        verdict = self._builtin.check_file(path.name + mark).include
        for base, spec in self._gitignores(path.parent):
            found = spec.check_file(str(path.relative_to(base)) + mark).include
            verdict = verdict if found is None else found
        if path.is_relative_to(self._base):
            found = self._own.check_file(str(path.relative_to(self._base)) + mark).include
            verdict = verdict if found is None else found
        return bool(verdict)

    def forget(self, folder: Path) -> None:
        """A .gitignore has changed in this folder: read it again, here and below."""
        _read_gitignore.cache_clear()
        for known in [f for f in self._by_folder if f.is_relative_to(folder)]:
            del self._by_folder[known]

    def _gitignores(self, folder: Path) -> tuple[tuple[Path, GitIgnoreSpec], ...]:
        """The .gitignore files that count for what lies in `folder`, outermost first."""
        if not self._gitignore:
            return ()
        found = self._by_folder.get(folder)
        if found is None:
            spec = _read_gitignore(folder)
            above = () if (folder / ".git").exists() or folder == folder.parent else self._gitignores(folder.parent)
            found = self._by_folder[folder] = (*above, (folder, spec)) if spec else above
        return found


@lru_cache(maxsize=4096)
def _read_gitignore(folder: Path) -> GitIgnoreSpec | None:
    try:
        lines: Iterable[str] = (folder / ".gitignore").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return GitIgnoreSpec.from_lines(lines)

"""The files of a project: what changed goes to the core, and a changed devloop.toml to the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from devloop.config.model import Project, Service
from devloop.core import events as ev
from devloop.core.debounce import Burst
from devloop.engine.bursts import Bursts
from devloop.local.watch.scope import WatchSpec
from devloop.local.watch.watcher import Watcher

CONFIG = ""
"""The name that the project's own files are watched under; no service can have it."""
CONFIG_QUIET = 20_000_000
"""Quiet time of the project's own files, in nanoseconds."""


class Files:
    """What is watched, for each service and for the project itself."""

    def __init__(
        self,
        project: Project,
        dispatch: Callable[[ev.Event], None],
        config_changed: Callable[[], None],
        notice: Callable[[str, str, str], None],
    ) -> None:
        """`config_changed` is called when the project's own files have come to rest; `notice`: level, text, hint."""
        self._project = project
        self._dispatch = dispatch
        self._config_changed = config_changed
        self._notice = notice
        self.watcher = Watcher(project.root, self._changed, self._trouble)
        self._bursts = Bursts(project.root, self._settled, lambda: self.watcher.busy)

    async def watch(self, project: Project, broken: tuple[Path, ...] = ()) -> None:
        """Watch what the project in force names. Again after each change of it.

        `broken`: files that would mend a project file which can't be read, and are no part of the project in force.
        """
        self._project = project
        own = (*project.files, *project.missing, *broken)
        config = WatchSpec(CONFIG, project.root, own, gitignore=False)
        # A save of these is a change of configuration, and restarts what that changes; see `reload_config`.
        await self.watcher.watch([*map(_spec, project.services.values()), config], own)

    async def close(self) -> None:
        """Watch nothing any more."""
        await self.watcher.close()
        self._bursts.close()

    def _changed(self, name: str, files: tuple[str, ...], edited: int, detected: int) -> None:
        if name == CONFIG:
            self._bursts.changed(name, files, CONFIG_QUIET, detected)
        elif name in self._project.services:  # else it has just gone from devloop.toml
            quiet = max(self._project.services[name].debounce, self.watcher.quiet)
            self._bursts.changed(name, files, quiet, detected)
            self._dispatch(ev.FilesChanged(name, files, edited))

    def _trouble(self, service: str, text: str, hint: str) -> None:
        self._notice("warning", f"{service}: {text}" if service else text, hint)

    def _settled(self, name: str, _: Burst) -> None:
        if name == CONFIG:
            self._config_changed()
        else:
            self._dispatch(ev.FilesSettled(name))


def _spec(service: Service) -> WatchSpec:
    return WatchSpec(
        service.name,
        service.cwd,
        service.watch,
        service.ignore,
        service.gitignore,
        service.watch_mode,
        service.poll,
    )

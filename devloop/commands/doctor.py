"""`devloop doctor`: what works on this machine, and how to mend what does not."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from devloop import __version__
from devloop.commands.common import colour, print_json, project_file
from devloop.commands.findings import Finding
from devloop.errors import DevloopError, RemoteError
from devloop.escapes import words
from devloop.failures import more_open_files
from devloop.state import StateFolder
from devloop.terminal import styled

if TYPE_CHECKING:
    from devloop.config.model import Project

MIN_WATCHES = 65_536
"""Fewer inotify watches than this are soon used up by one editor and one large repository."""
MIN_FILES = 4_096
"""An engine with 100 services holds some 600 descriptors; browsers of logs and probes come on top."""


def doctor(args: argparse.Namespace) -> int:
    """`devloop doctor`. Exit code 1 if something keeps devloop from working, 3 if that is the remote alone."""
    findings = list(_examine(args))
    if args.json:
        print_json([asdict(finding) for finding in findings])
    else:
        styled(f"{_table(findings)}\n")
    errors = [finding for finding in findings if finding.level == "error"]
    if errors and all(finding.remote for finding in errors):
        return RemoteError.exit_code
    return int(bool(errors))


def _table(findings: Sequence[Finding]) -> str:
    marks = {"ok": ("✓", "\x1b[32m"), "warning": ("!", "\x1b[33m"), "error": ("✗", "\x1b[31m")}
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        mark, sgr = marks[finding.level]
        shown = f"{sgr}{mark}\x1b[0m" if colour() else mark
        lines.append(f"{shown} {words(finding.what):{width}}  {words(finding.text)}")
        if finding.hint:
            lines.append(f"  {'':{width}}  → {words(finding.hint)}")
    return "\n".join(lines)


def _examine(args: argparse.Namespace) -> Iterator[Finding]:
    checks: list[Callable[[], Iterator[Finding]]] = [_versions, _watching, _descriptors, _holders, _terminal]
    for check in checks:
        yield from check()
    yield from _project(args)


def _versions() -> Iterator[Finding]:
    python = platform.python_version()
    yield Finding("devloop", "ok", f"{__version__}, Python {python}, SQLite {sqlite3.sqlite_version}")
    system = f"{platform.system()} {platform.release()}"
    if sys.platform == "linux":
        yield Finding("system", "ok", system)
    else:
        yield Finding(
            "system",
            "warning",
            f"{system}: double-forked children of a service can't be found here when it stops",
            "keep servers in the foreground",
        )


def _watching() -> Iterator[Finding]:
    if sys.platform != "linux":
        yield Finding("watching", "ok", "by watchfiles")
        return
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
        instances = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    except (OSError, ValueError):
        yield Finding("watching", "warning", "no inotify here: files are polled", "use a file system of this host")
        return
    if limit < MIN_WATCHES:
        mend = f"sudo sysctl fs.inotify.max_user_watches={8 * MIN_WATCHES}"
        yield Finding("watching", "warning", f"inotify, only {limit} watches for this user", mend)
    else:
        yield Finding("watching", "ok", f"inotify, {limit} watches and {instances} instances for this user")


def _polled(project: Project) -> Iterator[Finding]:
    """The watched folders whose file system does not report every change."""
    from devloop.config.model import WatchMode
    from devloop.local.watch.mounts import Mounts

    mounts = Mounts()
    for name, service in project.services.items():
        if service.watch_mode is WatchMode.POLL:
            yield Finding("watching", "ok", f"{name}: polled, as devloop.toml says")
            continue
        for path in service.watch:
            for folder, what in mounts.silent(str(path.resolve())).items():
                text = f"{name}: {folder} is on {what}, which does not report all changes"
                if service.watch_mode is WatchMode.AUTO:
                    yield Finding("watching", "ok", f"{text}: it is polled as well")
                else:
                    yield Finding("watching", "warning", text, f'watch_mode = "events" keeps {name} from polling it')


def _descriptors() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MIN_FILES <= hard or hard == resource.RLIM_INFINITY:
        yield Finding("open files", "ok", f"{soft}, raised as needed")
    elif soft < MIN_FILES:
        yield Finding("open files", "warning", f"only {soft}", f"for many services, {more_open_files(MIN_FILES)}")
    else:
        yield Finding("open files", "ok", str(soft))


def _holders() -> Iterator[Finding]:
    if sys.platform != "linux":
        return
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if children.exists():
        yield Finding("process trees", "ok", "child subreaper, and the kernel's list of children")
    else:
        text = "the kernel has no list of children (CONFIG_PROC_CHILDREN): each reload scans /proc"
        yield Finding("process trees", "warning", text, "works, some milliseconds slower")


def _terminal() -> Iterator[Finding]:
    if not sys.stdout.isatty():
        yield Finding("terminal", "ok", "none: use --headless or --detach")
        return
    size = shutil.get_terminal_size()
    encoding = (sys.stdout.encoding or "").lower()
    if "utf" not in encoding:
        yield Finding("terminal", "warning", f"encoding {encoding}", "export LANG=C.UTF-8")
    else:
        yield Finding("terminal", "ok", f"{size.columns} by {size.lines}, {os.environ.get('TERM', 'no TERM')}")


def _project(args: argparse.Namespace) -> Iterator[Finding]:
    try:
        file = project_file(args)
    except DevloopError as error:
        yield Finding("project", "warning", error.what, error.hint or "")
        return
    state = StateFolder(file.parent)
    pid = None
    try:
        state = state.of_engine()
        state.create()
        pid = state.engine_pid()
    except DevloopError as error:
        yield Finding("state folder", "error", str(error), error.hint or "")
    else:
        yield Finding("state folder", "ok", str(state.path))
    yield Finding("engine", "ok", "not running" if pid is None else f"running, pid {pid}")
    from devloop.config.load import load

    try:
        project = load(file, os.environ)
    except DevloopError as error:
        yield Finding("project", "error", str(error), "devloop check")
        return
    count = len(project.services)
    yield Finding("project", "ok", f"{file}: {count} service{'' if count == 1 else 's'}")
    yield from _polled(project)
    from devloop.commands.remote_findings import examine, network

    local = network(project.network) if project.remote is not None else None
    if pid is None and (local is None or local.on_host):
        from devloop.local import ports

        for service in project.services.values():
            for name, port in service.ports.items():
                if ports.taken(port):
                    who, hint = ports.holder_of(port)
                    yield Finding(f"port {port}", "error", f"{service.name}.{name}: taken by {who}", hint)
    if project.remote is not None and local is not None:
        yield local.finding
        from devloop.commands.consent import UnagreedError, require

        try:
            require(project, project.remote)
        except UnagreedError as error:
            yield Finding("remote", "warning", f"not looked at: {error.what}", error.hint or "", remote=True)
        else:
            yield from examine(project, project.remote)

"""Commands that print data: status, logs, stats, export, env."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devloop.commands.common import (
    age,
    check_names,
    colour,
    engine_socket,
    print_json,
    project_file,
    socket_of,
    state_folder,
    write,
)
from devloop.control import client
from devloop.errors import EngineError, UnansweredError, UsageError
from devloop.protocol import (
    AttachmentStatus,
    LogBatch,
    LogLine,
    Loop,
    Outcome,
    RemoteStatus,
    ServiceStatus,
    Snapshot,
    State,
    earlier_in_words,
)
from devloop.terminal import data, styled

if TYPE_CHECKING:
    from devloop.commands.lines import LinePrinter
    from devloop.state import StateFolder

_GOOD, _BUSY, _BAD, _DIM, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[2m", "\x1b[0m"
_COLOURS = {
    State.READY: _GOOD,
    State.COMPLETED: _GOOD,
    State.FAILED: _BAD,
    State.CRASH_LOOP: _BAD,
    State.BACKOFF: _BAD,
    State.OFF: _DIM,
    State.STOPPED: _DIM,
}
_ALL = 10**9
"""More lines than any engine keeps."""


def status(args: argparse.Namespace) -> int:
    """`devloop status`. Exit code 1 if a service has failed."""
    snapshot = Snapshot.from_json(client.call(engine_socket(args), "status"))
    known = {service.name for service in snapshot.services}
    check_names(args.services, known)
    services = [s for s in snapshot.services if not args.services or s.name in args.services]
    if args.json:
        data = snapshot.to_json()
        data["services"] = [service.to_json() for service in services]
        print_json(data)
    else:
        styled(f"{status_table(services)}\n")
        if any(service.attachments for service in services):
            print(f"\n{attachment_table(services)}")
        for line in earlier_lines(services):
            print(f"\n{line}")
        for line in remote_ports(snapshot.remote) if not args.services else ():
            print(f"\n{line}")
        if snapshot.config_error:
            print(f"\nNot in force yet:\n{snapshot.config_error}")
    return int(any(service.state in (State.FAILED, State.CRASH_LOOP) for service in services))


def remote_ports(remote: RemoteStatus | None) -> Iterator[str]:
    """With `network = "ports"`: what of the remote is open on localhost, and what is not."""
    if remote is None:
        return
    if remote.forwarded:
        opened = (f"{name} at {port}" for name, port in remote.forwarded.items())
        yield f"Open on localhost: {', '.join(opened)}"
    if remote.closed:
        yield f"Closed, as nothing names them (`forward` in [remote] opens them): {', '.join(remote.closed)}"


def status_table(services: Sequence[ServiceStatus]) -> str:
    """One line a service."""
    from devloop.metrics.table import columns, duration

    head = ("SERVICE", "MODE", "STATE", "LAST LOOP", "P50", "P95", "RESTARTS", "PORTS", "")
    rows = [
        (
            s.name,
            s.mode,
            "at prompt" if s.prompt else s.state.value,
            _last(s.last_loop),
            duration(s.p50) if s.p50 is not None else "",
            duration(s.p95) if s.p95 is not None else "",
            str(s.restarts),
            " ".join(f"{name}:{port}" if name != str(port) else name for name, port in s.published.items()),
            s.at_prompt or s.reason,
        )
        for s in services
    ]
    first, *lines = columns(head, rows, "<<<>>>><<").splitlines()
    if colour():
        lines = [
            line
            if s.prompt
            else line.replace(s.state.value, f"{_COLOURS.get(s.state, _BUSY)}{s.state.value}{_PLAIN}", 1)
            for line, s in zip(lines, services, strict=True)
        ]
    return "\n".join([first, *lines])


def _last(loop: Loop | None) -> str:
    from devloop.metrics.table import duration

    if loop is None:
        return ""
    return "failed" if loop.outcome is Outcome.FAILED else duration(loop.waited)


def _flows(attachment: AttachmentStatus) -> bool:
    return bool(attachment.routes) and attachment.phase in ("attached", "failed open")


def attachment_table(services: Sequence[ServiceStatus]) -> str:
    """What they hold of the cluster's traffic, one line an attachment; requests per second of the last seconds."""
    from devloop.metrics.table import columns

    head = ("SERVICE", "HOLDS", "BY", "PHASE", "REQUESTS", "HERE/S", "ORIGINAL/S", "")
    rows = [
        (
            service.name,
            each.target,
            each.kind,
            each.phase,
            " or ".join(each.routes),
            *((f"{each.local_rate:.1f}", f"{each.original_rate:.1f}") if _flows(each) else ("", "")),
            "; ".join(filter(None, (each.reason, *each.notes))),
        )
        for service in services
        for each in service.attachments
    ]
    return columns(head, rows, "<<<<<>><")


def earlier_lines(services: Sequence[ServiceStatus]) -> list[str]:
    """Connections that don't lead to where a service is, a line for each place that they lead to."""
    found = []
    for service in services:
        name = service.name
        found += [f"{name}: {text}. `devloop move {name}` ends them." for text in earlier_in_words(service.earlier)]
        for each in service.attachments:
            said = earlier_in_words(each.earlier, each.earlier_rate)
            found += [f"{name}: {text}. `devloop move {name}` moves them." for text in said]
            if each.uncounted:
                found.append(
                    f"{name}: connections from before may still lead to the original of {each.target}; "
                    f"not counted: {each.uncounted}"
                )
    return found


def logs(args: argparse.Namespace) -> int:
    """`devloop logs`: from the engine, or from the files that the last one has left."""
    from devloop.commands.lines import LinePrinter

    if args.remote:
        from devloop.commands import podlogs

        return podlogs.logs(args)
    state = state_folder(args)
    since = None if args.since is None else time.time_ns() - age(args.since)
    tail = args.tail if args.tail is not None else 200 if since is None else _ALL
    printer = LinePrinter(json=args.json, level=args.level)
    services = args.services or None
    if args.follow:
        asyncio.run(_follow(state, services, tail, printer, since or 0))
        return 0
    try:
        answer = client.call(socket_of(state), "logs", services=services, tail=tail)
    except UnansweredError:
        raise
    except EngineError:
        if since is not None:
            hint = "the files that it has left have no times; leave --since out"
            raise EngineError("no engine runs for this project", where=str(state.root), hint=hint) from None
        _print_files(state.logs, args.services, tail, printer)
        return 0
    lines = list(map(LogLine.from_json, answer["lines"]))
    printer.print(line for line in lines if line.at >= (since or 0))
    earlier = answer.get("earlier", 0)
    if earlier and len(lines) < tail and (since is None or not lines or lines[0].at >= since):
        _note(f"{earlier} earlier lines are in files only; see {state.logs}")
    return 0


def _note(text: str) -> None:
    print(f"devloop: {text}", file=sys.stderr, flush=True)


async def _follow(
    state: StateFolder, services: Sequence[str] | None, tail: int, printer: LinePrinter, since: int
) -> None:
    async with await client.ControlClient.connect(socket_of(state)) as connection:
        await connection.subscribe(logs=services or "*", tail=tail, every=True)
        stopping = False
        async for event in connection.events():
            if isinstance(event, Snapshot):
                check_names(services or (), {s.name for s in event.services})
                printer.width = max((len(s.name) for s in event.services), default=0)
                stopping = event.stopping
            elif isinstance(event, LogBatch):
                if event.dropped:
                    _note(f"{event.dropped} lines came more quickly than they were read; see {state.logs}")
                printer.print(line for line in event.lines if line.at >= since)
    _note("the engine has ended" if stopping else "the engine is gone")


def _print_files(folder: Path, services: Sequence[str], tail: int, printer: LinePrinter) -> None:
    from devloop.config.words import suggestion
    from devloop.local.logfiles import last_lines

    names = services or sorted(path.stem for path in folder.glob("*.log"))
    if not names:
        raise EngineError("no engine runs, and none has left a log", where=str(folder), hint="start with `devloop up`")
    printer.width, printer.named = max(map(len, names)), len(names) > 1
    for name in names:
        path = folder / f"{name}.log"
        if not path.is_file():
            hint = suggestion(name, [each.stem for each in folder.glob("*.log")], kind="logs")
            raise UsageError(f"there is no log of {name!r}", where=str(folder), hint=hint)
        try:
            found = last_lines(path, tail)
        except OSError as error:
            raise EngineError(f"can't read the log of {name!r}: {error.strerror}", where=str(path)) from None
        # Files have neither the time nor the stream of a line.
        printer.print(LogLine(name, 0, "", line.decode("utf-8", "replace")) for line in found)


def _loops(args: argparse.Namespace) -> list[Loop]:
    from devloop.metrics.store import read_loops

    state = state_folder(args)
    loops = read_loops(state.database, time.time_ns() - age(args.since))
    if args.services:
        from devloop.commands.completion import found

        known = {loop.service for loop in loops}
        check_names(args.services, known if known.issuperset(args.services) else known | found(project_file(args)))
    return [loop for loop in loops if not args.services or loop.service in args.services]


def stats(args: argparse.Namespace) -> int:
    """`devloop stats`."""
    from devloop.metrics import stats as statistics
    from devloop.metrics.table import stats_table

    loops = _loops(args)
    if args.json:
        print_json(statistics.report(loops, time.time_ns(), args.last))
    elif loops:
        print(stats_table(statistics.summarise(loops, time.time_ns())))
    else:
        print("no loops yet: save a watched file while `devloop up` runs")
    return 0


def export(args: argparse.Namespace) -> int:
    """`devloop export`."""
    from devloop.metrics import export as exporters

    loops = _loops(args)
    project = state_folder(args).root.name
    text = exporters.FORMATS[args.format](loops, project)
    if args.output:
        write(Path(args.output), text)
        print(f"{len(loops)} loops written to {args.output}", file=sys.stderr)
    else:
        data(text)
    return 0

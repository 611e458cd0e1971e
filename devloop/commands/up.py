"""`devloop up`: the engine, and what is opened on it."""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from devloop import streams
from devloop.agent.tasks import background
from devloop.commands.common import check_file, project_file, socket_of
from devloop.control import client
from devloop.errors import DevloopError, EngineError, ServiceError
from devloop.protocol import Notice, ServiceStatus, Snapshot, State
from devloop.state import StateFolder, taken
from devloop.terminal import in_ci, styled

_SETTLED = (
    State.READY,
    State.COMPLETED,
    State.FAILED,
    State.CRASH_LOOP,
    State.OFF,
    State.STOPPED,
    State.REMOTE,
)
T = TypeVar("T")
ANY = "any"
"""As `devloop.commands.consent` has it, which is not imported for this."""
HUNG_UP = 129
"""Exit code when the terminal was closed: 128 + SIGHUP, as a shell gives it."""
NICENESS = 10
"""The TUI's, where every other process has 0 (nice(2))."""
ENVIRONMENTS = ("VIRTUAL_ENV", "CONDA_PREFIX")
"""What says which programs a shell has been given by `activate`."""
REMIND_SECONDS = 4.0
"""So long `up --detach` waits until it says for what, and then again when that has changed."""
_LOST = ("refused", "contested")
"""Phases of attachments that are not held (`devloop.attach.Phase`)."""
_BAD = (State.FAILED, State.CRASH_LOOP)


def up(args: argparse.Namespace) -> int:
    """`devloop up`."""
    file = project_file(args)
    state = StateFolder(file.parent).of_engine()
    check_file(state, file)
    reason = "" if args.headless or args.detach else why_no_screen(os.environ)
    if (args.headless or reason) and (running := state.engine()) is not None:
        raise taken(running, _beside(args))
    agreed_to = ANY if args.trust else ""
    if args.headless or reason:
        if not args.headless:
            print(f"devloop: {reason}: runs as `devloop up --headless`", file=sys.stderr, flush=True)
        return agreeing(lambda digest: _headless(file, args.services, digest), agreed_to)
    if state.engine() is None:
        meanwhile = _import_nothing if args.detach else _import_tui
        agreeing(
            lambda digest: start_engine(file, state, args.services, meanwhile=meanwhile, agreed_to=digest), agreed_to
        )
    else:
        if args.services:
            client.call(socket_of(state), "start", services=args.services)
        if args.detach:
            _tell_environment(state)
    if args.detach:
        return _detach(state, args)
    # A thread that is there before the TUI becomes nice: an engine that it starts later is not (nice(2), per thread).
    with concurrent.futures.ThreadPoolExecutor(1) as starter:
        starter.submit(int).result()
        return _tui(state, lambda: starter.submit(start_engine, file, state, args.services).result())


def _tell_environment(state: StateFolder) -> None:
    """Say if the engine that runs already was started in another virtual environment: its services have that one's."""
    running = state.engine()
    try:
        said = Path(f"/proc/{running.pid if running else 0}/environ").read_bytes().split(b"\0")
    except OSError:  # another system, or it has just ended
        return
    theirs = dict(each.partition(b"=")[::2] for each in said)
    for name in ENVIRONMENTS:
        before, now = theirs.get(os.fsencode(name), b""), os.environb.get(os.fsencode(name), b"")
        if before != now:
            was, is_now = (os.fsdecode(each) or "none" for each in (before, now))
            streams.tell(
                f"devloop: services have the {name} that the engine was started with: {was}, and not {is_now}; "
                "`devloop down`, then `devloop up -d`, takes this shell's"
            )


def agreeing(start: Callable[[str], T], agreed_to: str) -> T:
    """What `start` returns. If what the project reaches has changed, somebody is asked once, and it is tried again."""
    try:
        return start(agreed_to)
    except DevloopError as error:
        digest = getattr(error, "digest", "")
        if not digest:
            raise
        from devloop.commands.consent import asked

        if not asked(error):
            raise DevloopError("nothing was started", hint="`devloop check` and `git diff` show the project") from None
        return start(digest)


def _detach(state: StateFolder, args: argparse.Namespace) -> int:
    """Wait for the services; the engine goes on, whatever comes of them, and that is said."""
    named = [] if args.file is None else ["-f", args.file]
    goes_on = f"the engine goes on: `{shlex.join(['devloop', 'down', *named])}` ends it"
    try:
        code = asyncio.run(_wait_until_ready(state, args.wait))
    except KeyboardInterrupt:
        streams.tell(f"devloop: no longer waiting; {goes_on}")
        raise
    if code:
        streams.tell(f"devloop: {goes_on}")
    return code


def _beside(args: argparse.Namespace) -> str:
    """What can be done about an engine that runs already, where no screen is."""
    named = [] if args.file is None else ["-f", args.file]
    attach = shlex.join(["devloop", "up", *named, "-d", *args.services])
    does = "starts them in it" if args.services else "shows its services"
    return f"`{attach}` {does}, `{shlex.join(['devloop', 'down', *named])}` ends it"


def why_no_screen(environ: Mapping[str, str]) -> str:
    """Why the TUI can't be shown here; empty if it can."""
    for name, stream in (("standard input", sys.stdin), ("standard output", sys.stdout)):
        try:
            terminal = stream is not None and stream.isatty()
        except ValueError:  # closed
            terminal = False
        if not terminal:
            return f"{name} is not a terminal"
    if (kind := environ.get("TERM", "")) in (
        "",
        "dumb",
        "unknown",
    ):  # terminfo(5) has both as terminals that can't move
        return f"the terminal can't show a screen (TERM={kind})" if kind else "TERM is not set"
    if in_ci(environ):
        return "CI is set"
    return ""


def _import_nothing() -> None:
    pass


def _import_tui() -> None:
    """Half a second of imports, on the other core, while the engine has its own."""
    importlib.import_module("tui.app")


def start_engine(
    file: Path,
    state: StateFolder,
    services: list[str],
    *,
    meanwhile: Callable[[], None] = _import_nothing,
    agreed_to: str = "",
) -> None:
    """Start the engine in the background; returns when clients can connect. Raises what prevents that.

    `meanwhile` is done here while it starts.
    """
    is_new = not os.path.lexists(state.path)
    state.create()
    try:
        _start(file, state, services, meanwhile, agreed_to)
    except _RefusedError:  # and it has ended
        if is_new:
            state.discard()
        raise


def _start(file: Path, state: StateFolder, services: list[str], meanwhile: Callable[[], None], agreed_to: str) -> None:
    read, write = os.pipe()
    with open_log(state.engine_log) as log:
        command = [sys.executable, "-m", "devloop.cli", "-f", str(file), "engine", "--report", str(write)]
        if agreed_to:
            command += ["--agreed-to", agreed_to]
        process = subprocess.Popen(
            [*command, *services],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[write],
            start_new_session=True,
        )
    os.close(write)
    meanwhile()
    report_of(read, process, state.engine_log)
    process.returncode = 0  # it goes on without us: subprocess shall not complain


def open_log(file: Path) -> BinaryIO:
    """Where an engine's own words go, empty. A link is not followed. /dev/null if it can't be made: a full disk."""
    try:
        return os.fdopen(
            os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb"
        )
    except OSError:
        return Path(os.devnull).open("wb")


def report_of(read: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an engine says through this descriptor that it is up. Raises what prevents that."""
    with os.fdopen(read, "rb") as report:
        text = report.read()
    if not text:
        raise EngineError(
            f"the engine did not start (exit code {process.wait()})",
            where=str(log),
            hint=f"please report it; its last words: {_last_words(log)}",
        )
    answer = json.loads(text)
    if "error" in answer:
        process.wait()
        raise _RefusedError(answer["error"], answer["exit_code"], answer.get("digest", ""))


def _last_words(log: Path) -> str:
    try:
        return log.read_text(errors="replace").strip().rpartition("\n")[2] or "none"
    except OSError:
        return "none"


class _RefusedError(DevloopError):
    """What the engine has to say about its own start, ready for the screen."""

    def __init__(self, text: str, exit_code: int, digest: str = "") -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.digest = digest
        """Of what the project reaches, if that has changed."""


def _tui(state: StateFolder, start: Callable[[], None]) -> int:
    from tui.app import Outcome, run

    os.nice(NICENESS)  # the engine is a process of its own, and started already: its bytes go before our pixels
    outcome = run(state.socket, start)
    if outcome is Outcome.HUNG_UP:
        # The terminal was closed: nobody is left to stop the services.
        with contextlib.suppress(EngineError):
            client.call(state.socket, "shutdown")
        return HUNG_UP
    if outcome is Outcome.DETACHED:
        if Snapshot.from_json(client.call(state.socket, "status")).stopping:
            print("The engine is still stopping its services; `devloop down` waits for it.")
        else:
            print("The services go on: `devloop up` opens them again, `devloop down` stops them.")
    elif outcome is Outcome.LOST:
        raise _gone(state)
    return 0


def _gone(state: StateFolder) -> EngineError:
    return EngineError(
        "the engine is gone",
        where=str(state.engine_log),
        hint="its services were ended with it; `devloop up` starts anew",
    )


async def _wait_until_ready(state: StateFolder, seconds: float) -> int:
    from devloop.commands.inspect import status_table
    from devloop.commands.report import coming, late

    def settled(status: ServiceStatus) -> bool:
        """Nothing more comes of it by itself, and of what it attaches to."""
        return _settled(status) and not any(coming(status, each) for each in status.attachments)

    services: dict[str, ServiceStatus] = {}
    told: set[Notice] = set()

    def tell(notices: Iterable[Notice]) -> None:
        for notice in notices:
            if notice.level == "error" and notice not in told:
                told.add(notice)
                text = f"{notice.service or 'devloop'}: {notice.text}"
                streams.tell("\n  ".join(filter(None, (text, notice.hint))))

    async def remind() -> None:
        said = ""
        while True:
            await asyncio.sleep(REMIND_SECONDS)
            text = ", ".join(late(each) for each in services.values() if not settled(each))
            if text and text != said:
                streams.tell(f"devloop: waiting for {text}")
            said = text

    reminding = background(remind(), name="what is waited for")
    async with await client.ControlClient.connect(socket_of(state)) as connection:
        await connection.subscribe()
        try:
            async with asyncio.timeout(seconds):
                async for event in connection.events():
                    if isinstance(event, Snapshot):
                        services = {service.name: service for service in event.services}
                        tell(event.notices)
                    elif isinstance(event, ServiceStatus):
                        services[event.name] = event
                    elif isinstance(event, Notice):
                        tell([event])
                    if services and all(map(settled, services.values())):
                        # A state may come before the words that explain it.
                        last = Snapshot.from_json(await connection.call("status"))
                        tell(last.notices)
                        services = {service.name: service for service in last.services}
                        break
                else:  # it has hung up
                    raise _gone(state)
        except TimeoutError:
            waiting = [late(s) for s in services.values() if not settled(s)]
            styled(f"{status_table(list(services.values()))}\n")
            _tell_failures(services.values())
            raise ServiceError(
                f"not ready after {seconds:g} s: {', '.join(waiting)}",
                hint="they go on; see `devloop logs`, or stop them with `devloop down`",
            ) from None
        finally:
            reminding.cancel()
    styled(f"{status_table(list(services.values()))}\n")
    _tell_failures(services.values())
    lost = any(each.phase in _LOST for s in services.values() for each in s.attachments)
    return int(lost or any(s.state in _BAD or s.stuck for s in services.values()))


def _settled(status: ServiceStatus) -> bool:
    """Nothing more comes of it by itself: it is ready or done, or will not be."""
    return status.state in _SETTLED or bool(status.stuck) or (status.state is State.WAITING and bool(status.next_at))


def _tell_failures(services: Iterable[ServiceStatus]) -> None:
    from devloop.commands.attach import in_words
    from devloop.commands.report import failure

    for service in services:
        if line := failure(service):
            ran = service.state in _BAD and service.exit_code is not None
            print(f"devloop: {line}{f'; see `devloop logs {service.name}`' if ran else ''}", file=sys.stderr)
        for each in service.attachments:
            if each.phase in _LOST:
                print(f"devloop: {service.name}: {in_words(each)}", file=sys.stderr)


def _headless(file: Path, services: list[str], agreed_to: str) -> int:
    from devloop.cli import INTERRUPTED
    from devloop.commands.echo import Echo
    from devloop.commands.engine import run_engine
    from devloop.commands.lines import LinePrinter
    from devloop.commands.report import Reporter

    code: int | None = None
    began = time.monotonic()
    printer = LinePrinter()
    echo: list[Echo] = []

    def on_engine(it: object) -> None:
        from devloop.engine.engine import Engine

        assert isinstance(it, Engine)
        printer.width = max(map(len, it.project.services))
        it.sink = Echo(printer, it.shut_down)
        echo.append(it.sink)
        it.on_status = Reporter(lambda line: streams.tell(f"devloop: {line}")).status

        def over(exit_code: int) -> None:
            nonlocal code
            code = exit_code
            it.shut_down()

        it.on_over = over

    try:
        interrupted = run_engine(file, services, on_engine=on_engine, agreed_to=agreed_to)
    finally:
        for each in echo:
            each.close()
    streams.tell(f"devloop: all stopped (was up for {time.monotonic() - began:.0f} s)")
    return INTERRUPTED if interrupted else code or 0

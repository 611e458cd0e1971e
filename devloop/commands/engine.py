"""The engine as a process of its own: what `devloop up` starts, with or without a TUI on it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from devloop.commands.common import project_file
from devloop.config.find import FILE_NAME
from devloop.errors import DevloopError
from devloop.state import StateFolder

if TYPE_CHECKING:
    from devloop.config.model import Project
    from devloop.local.process import Holders


def engine(args: argparse.Namespace) -> int:
    """`devloop engine` (hidden). Tells through the descriptor `--report` whether it is up, or why not."""

    def report(message: dict[str, object]) -> None:
        os.write(args.report, json.dumps(message).encode())
        os.close(args.report)

    try:
        if args.owner is not None:
            run_for(args, lambda: report({"up": os.getpid()}))
        else:
            run_engine(
                project_file(args),
                args.services,
                up=lambda: report({"up": os.getpid()}),
                agreed_to=args.agreed_to,
            )
    except DevloopError as error:
        try:
            digest = getattr(error, "digest", "")  # of a ChangedError
            report({"error": str(error), "exit_code": error.exit_code, "digest": digest})
        except OSError:
            raise error from None  # it was up already: the log gets it
        return error.exit_code
    except (OSError, RuntimeError) as error:
        from devloop.failures import explained, is_the_machines

        if not is_the_machines(error) and not isinstance(error, BlockingIOError):
            raise
        told = explained(error)
        with contextlib.suppress(OSError):
            report({"error": f"the engine can't start: {told}", "exit_code": told.exit_code})
        raise told from None
    return 0


def run_for(args: argparse.Namespace, up: Callable[[], None]) -> None:
    """An engine that starts nothing, for one command: it ends when the other end of the pipe `--owner` closes."""
    from devloop.local.process import Holders

    holders = Holders()
    holders.open()
    from devloop.engine.engine import Engine, load_project

    gone = False

    def of_the_project() -> Project:
        found = load_project(project_file(args), os.environ, [])
        if found.remote is not None:
            from devloop.commands.consent import require

            require(found, found.remote, looks=False)
        return found

    project = _project(holders, lambda: of_the_project() if args.workload is None else _alone(args))

    async def main() -> None:
        it = Engine(project, StateFolder(project.root, Path(args.state)), dict(os.environ), holders)
        loop = asyncio.get_running_loop()

        def left() -> None:
            nonlocal gone
            gone = True
            loop.remove_reader(args.owner)
            it.shut_down()

        loop.add_reader(args.owner, left)
        await it.run((), up, idle=True)

    _run(project, main)
    if gone:  # and it may have been killed, with nobody left to remove this
        shutil.rmtree(args.state, ignore_errors=True)


def _project(holders: Holders, load: Callable[[], Project]) -> Project:
    """What `load` returns; if it raises, the holders end with it."""
    try:
        return load()
    except DevloopError:
        asyncio.run(holders.close())
        raise


def _run(project: Project, main: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run the engine, on the event loop that suits it.

    uvloop's takes a twentieth of a second to import, and makes a round trip through the link a third shorter.
    """
    factory = None
    if project.remote is not None:
        from devloop.agent.loops import new_event_loop

        factory = new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def _alone(args: argparse.Namespace) -> Project:
    """A project of one service, which stands for the workload that is meant; it has no file."""
    from devloop.commands.world import WORKLOAD
    from devloop.config.model import Place, Project, Remote, RemoteKind
    from devloop.config.resolve import nothing

    here = Path.cwd()
    remote = Remote(
        RemoteKind.KUBERNETES,
        context=args.context,
        kubeconfig=Path(args.kubeconfig).absolute() if args.kubeconfig else None,
        namespace=args.namespace,
    )
    service = nothing(WORKLOAD, here, Place(args.workload, container=args.container))
    return Project("devloop", here / FILE_NAME, (), {WORKLOAD: service}, remote=remote)


def run_engine(
    file: Path,
    services: list[str],
    *,
    up: Callable[[], None] = lambda: None,
    on_engine: Callable[[object], None] = lambda _: None,
    agreed_to: str = "",
) -> bool:
    """Load the project and run its engine here until it is shut down. True if a signal asked for that.

    Raises ChangedError unless what the project reaches is what was agreed to, or what `agreed_to` names.
    """
    from devloop.local.process import Holders

    holders = Holders()
    holders.open()  # before the imports, which take longer than its start
    gc.disable()  # a collection during the imports finds nothing, and takes a tenth of their time
    from devloop.engine.engine import Engine, load_project

    interrupted = False

    def settled() -> Project:
        from devloop.commands.consent import settle

        found = load_project(file, os.environ, services)
        settle(found, agreed_to)
        return found

    project = _project(holders, settled)

    async def main() -> None:
        it = Engine(project, StateFolder(project.root), dict(os.environ), holders)
        gc.freeze()  # what was imported stays: later collections need not look at it
        gc.enable()
        on_engine(it)

        def stop() -> None:
            nonlocal interrupted
            if interrupted:
                it.abandon()  # asked twice: don't wait for services that take their time
            interrupted = True
            it.shut_down()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        await it.run(services or None, up)

    _run(project, main)
    return interrupted

"""Commands that see the world as a service does: exec and env."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from devloop.commands.common import print_json, project_file, service_world, socket_of, state_folder
from devloop.config import workload
from devloop.control import client
from devloop.errors import DevloopError, ServiceError, UsageError
from devloop.places import runtime_folder
from devloop.protocol import Variable
from devloop.state import StateFolder
from devloop.terminal import data

WORKLOAD = "workload"
"""The one service of the project that `--workload` stands for."""


def execute(args: argparse.Namespace) -> int:
    """`devloop exec`: the command runs in the service's folder, environment, files and network."""
    words = [*([args.service] if args.workload and args.service else []), *args.argv]
    argv = words[1:] if words[:1] == ["--"] else words
    if argv == words and argv[:1] in (["-h"], ["--help"]):
        args.parser.parse_known_args(["exec", "--help"])
    if not any(argv[:1]) or not (args.workload or args.service):
        raise UsageError(
            "no command" if args.workload or args.service else "no service",
            hint="devloop exec SERVICE -- COMMAND, or devloop exec --workload KIND/NAME -- COMMAND",
        )
    if args.workload is None:
        if not has_remote(args):
            service, variables = service_world(args)
            _agreed(args)
            return _become(None, argv, str(service.cwd), {v.name: v.value for v in variables})
        running = state_folder(args)
        if running.engine() is not None:
            answer = client.call(socket_of(running), "enter", service=args.service)
            return _become(answer["pid"], argv, answer["cwd"], answer["env"])
        _agreed(args)
    with engine_of_our_own(args) as socket:
        answer = client.call(socket, "enter", service=WORKLOAD if args.workload else args.service)
        return _run(answer["pid"], argv, answer["cwd"], answer["env"])


def env(args: argparse.Namespace) -> int:
    """`devloop env`."""
    if args.workload is None and not args.service:
        raise UsageError("no service", hint="devloop env SERVICE, or devloop env --workload KIND/NAME")
    if args.workload is None and not has_remote(args):
        _, variables = service_world(args)
    else:
        variables = _asked(args)
    shown = [v for v in variables if args.all or v.origin != "host"]
    if args.json or args.format == "json":
        print_json({v.name: v.value for v in shown} if not args.json else [v.to_json() for v in shown])
    else:
        text = f"{_environment_text(shown, args.format, reveal=args.reveal)}\n"
        sys.stdout.write(text) if args.format == "table" else data(text)
    return 0


def _asked(args: argparse.Namespace) -> list[Variable]:
    """The variables from the project's engine, or from one of our own."""
    name = args.service if args.workload is None else WORKLOAD
    if args.workload is None:
        running = state_folder(args)
        if running.engine() is not None:
            return _decoded(client.call(socket_of(running), "env", service=name, reveal=True))
    with engine_of_our_own(args) as socket:
        return _decoded(client.call(socket, "env", service=name, reveal=True))


def _decoded(answer: dict[str, object]) -> list[Variable]:
    found = answer["variables"]
    assert isinstance(found, list)
    return [Variable.from_json(each) for each in found]


def _agreed(args: argparse.Namespace) -> None:
    """Raises UnagreedError if the service's variables decide what runs, and nobody has agreed to them."""
    from devloop.commands.consent import require_commands
    from devloop.config.load import load

    project = load(project_file(args), os.environ)
    if args.service in project.services:
        require_commands(project, project.services[args.service])


def has_remote(args: argparse.Namespace) -> bool:
    """Whether the project that is meant has a remote. Raises ConfigError for a broken file."""
    from devloop.config.load import load

    return load(project_file(args), os.environ).remote is not None


@contextlib.contextmanager
def engine_of_our_own(args: argparse.Namespace) -> Iterator[Path]:
    """An engine that starts no service, for as long as it takes; its control socket. It ends with this process."""
    from devloop.commands.up import report_of

    if args.workload is not None:
        workload.read(args.workload, where="--workload")  # a word that is none is told before anything is started
    read, write = os.pipe()
    alive, owner = os.pipe()
    # Whichever of the two ends last removes it: this process may be killed.
    with tempfile.TemporaryDirectory(prefix="devloop-", dir=runtime_folder(), ignore_cleanup_errors=True) as folder:
        state = StateFolder(Path(folder), Path(folder))
        command = [sys.executable, "-m", "devloop.cli"]
        if args.workload is None:
            command += ["-f", str(project_file(args))]
        command += ["engine", "--report", str(write), "--owner", str(alive), "--state", folder]
        for option in ("workload", "container", "context", "namespace", "kubeconfig"):
            if getattr(args, option):
                command += [f"--{option}", getattr(args, option)]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[write, alive],
                start_new_session=True,
            )
        os.close(write)
        os.close(alive)
        try:
            report_of(read, process, Path(folder) / "log")
            yield state.socket
        finally:
            os.close(owner)  # the engine takes it as a goodbye
            process.wait()


class NotRunError(ServiceError):
    """A command that did not start. Its exit code is a shell's: 127 if there is no such program, else 126."""

    def __init__(self, what: str, *, hint: str | None = None, missing: bool = False) -> None:
        super().__init__(what, hint=hint)
        self.exit_code = 127 if missing else 126


def _become(pid: int | None, argv: Sequence[str], cwd: str, env: dict[str, str], *, with_parent: bool = False) -> int:
    """This process is the command from here on. Raises NotRunError."""
    from devloop.net.enter import end_with_parent, enter

    try:
        if pid is not None:
            enter(pid)
    except ProcessLookupError:
        raise NotRunError("the service's processes have just ended", hint="run it again") from None
    except OSError as error:
        raise NotRunError(f"the service's namespaces can't be entered: {error.strerror}") from None
    if with_parent:
        end_with_parent()
    try:
        os.chdir(cwd)
        try:
            os.execvpe(argv[0], list(argv), env)
        except OSError as error:
            from devloop.local.holder import is_script, program

            if error.errno != errno.ENOEXEC or not is_script(file := program(argv[0], cwd, env)):
                raise
            os.execve("/bin/sh", ["/bin/sh", file, *argv[1:]], env)  # as a service's, and as POSIX has it
    except OSError as error:
        from devloop.local.holder import unstarted
        from devloop.local.process import explain

        found = unstarted(error, argv[0], cwd, env)
        what, hint = explain(found, argv, Path(cwd))
        raise NotRunError(what, hint=hint, missing=not found["file"] and not found["cwd"]) from None
    except ValueError as error:
        raise NotRunError(f"can't run {argv[0]}: {error}") from None


def _run(pid: int | None, argv: Sequence[str], cwd: str, env: dict[str, str]) -> int:
    """Run the command and wait for it; Ctrl-C is its own business, and it is told of other signals. Its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 127
        try:
            _become(pid, argv, cwd, env, with_parent=True)
        except DevloopError as error:
            print(f"devloop: {error}", file=sys.stderr, flush=True)
            code = error.exit_code
        finally:
            os._exit(code)

    def pass_on(number: int, _: object) -> None:
        os.kill(child, number)

    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    before |= {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _environment_text(variables: Sequence[Variable], form: str, *, reveal: bool) -> str:
    from devloop.local.environment import masked
    from devloop.metrics.table import columns

    if form == "table":
        shown = variables if reveal else list(map(masked, variables))
        rows = [(v.name, v.value.replace("\n", "\\n"), v.origin) for v in shown]
        return columns(("VARIABLE", "VALUE", "ORIGIN"), rows, "<<<")
    variables = _nameable(variables, form)
    if form == "shell":
        return "\n".join(f"export {v.name}={shlex.quote(v.value)}" for v in variables)
    if form == "dotenv":
        return "\n".join(f"{v.name}={_dotenv(v.value)}" for v in variables)
    several = [v.name for v in variables if "\n" in v.value]
    if several:
        raise DevloopError(
            f"docker's --env-file can't hold values of several lines: {', '.join(several)}",
            hint="use --format dotenv or shell",
        )
    return "\n".join(f"{v.name}={v.value}" for v in variables)


_NAMES = {"shell": r"[A-Za-z_][A-Za-z0-9_]*", "dotenv": r"[\w.\-\[\]]+", "docker": r"[^\s#=\x00][^\s=\x00]*"}
"""What a variable may be called in each format. Kubernetes and images take nearly any name: one such as `x;reboot`
would be a command to `eval`."""


def _nameable(variables: Sequence[Variable], form: str) -> list[Variable]:
    """Those whose name this format has; the others are told."""
    found = [each for each in variables if re.fullmatch(_NAMES[form], each.name)]
    if len(found) < len(variables):
        names = ", ".join(repr(each.name) for each in variables if not re.fullmatch(_NAMES[form], each.name))
        print(f"devloop: left out, as no name for a variable in this format: {names}", file=sys.stderr)
    return found


def _dotenv(value: str) -> str:
    """Quoted so that `env_file`, `docker compose` and most others read back what was there."""
    if not re.search(r"\\['\\]|\\$|[\r\x00]", value):
        return "'" + value.replace("'", "\\'") + "'"
    # Single quotes can't hold these: there, a backslash is taken out before a quote and nowhere else.
    return '"' + re.sub(r'(["\\$])', r"\\\1", value).replace("\r", "\\r") + '"'

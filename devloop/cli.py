"""The command line: the parser, and errors turned into messages and exit codes.

`devloop --help` must feel instant, so nothing is imported here, argparse neither until `main` can take a Ctrl-C; each
command lives in a module of `devloop.commands`, which is imported when that command is what was asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from devloop import __version__
from devloop.errors import DevloopError, UsageError

TYPE_CHECKING = False  # as typing has it, whose import takes as long as half of the parser
if TYPE_CHECKING:
    import argparse

    from devloop.arguments import Parser

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as a shell gives it."""

_EPILOG = "Exit codes: 0 done; 1 a service or command failed; 2 bad usage or configuration; 3 the remote \
refused or can't be reached; 130 interrupted. Documentation: README.md and docs/."


_FOLLOWS = ("logs", "requests")
"""Commands whose `-f` is --follow, as people know it from elsewhere."""
_LEVELS = ("trace", "debug", "info", "warning", "error", "fatal")  # devloop.records', which is not imported for this
_LEVEL_ALIASES = {"warn": "warning", "err": "error", "critical": "fatal"}
_AGENT = (
    "The agent is a pod that carries links, one for each namespace. devloop makes one when it needs it, which goes \
with its last client; these install one that stays."
)
_AGENT_ACTIONS = {
    "install": "install an agent that stays, and wait until it runs",
    "uninstall": "remove what `install` has made",
    "status": "show the agent and who has a key",
    "manifest": "print what an administrator can install: kubectl apply -n NAMESPACE -f -",
}


def parser() -> Parser:
    """The whole command line. Also what shell completion is made from."""
    import argparse

    from devloop.arguments import Parser, count, seconds

    top = Parser(
        prog="devloop",
        description="Run the services you work on here, reloaded as you type, and time every loop.",
        epilog=_EPILOG,
    )
    top.add_argument("--version", action="version", version=f"devloop {__version__}")
    top.add_argument("-f", "--file", metavar="FILE", help="project file (default: devloop.toml, here or above)")
    top.add_argument("--json", action="store_true", help=argparse.SUPPRESS)  # of the command that follows
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(
        name: str,
        module: str,
        text: str,
        *,
        json: bool = False,
        function: str = "",
        file: bool = True,
        to: argparse._SubParsersAction[Parser] = commands,
    ) -> Parser:
        sub = to.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=f"devloop.commands.{module}:{function or name}")
        # What is given before the command stays if nothing is given after it.
        if json:
            sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        if file:
            flags = ["--file"] if name in _FOLLOWS else ["-f", "--file"]
            sub.add_argument(*flags, metavar="FILE", default=argparse.SUPPRESS, help="project file, as before COMMAND")
        return sub

    up = add("up", "up", "start services, and open the TUI on them")
    up.add_argument("services", nargs="*", metavar="SERVICE", help="services or groups (default: all local ones)")
    how = up.add_mutually_exclusive_group()
    how.add_argument("--headless", action="store_true", help="no TUI: print the logs until Ctrl-C")
    how.add_argument("--detach", "-d", action="store_true", help="leave the engine running and return")
    up.add_argument(
        "--wait",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="with --detach: how long to wait for services to be ready (default: 60)",
    )

    up.add_argument(
        "--trust",
        action="store_true",
        help="agree to what the project reaches outside of its folder, without a question (for CI)",
    )

    down = add("down", "control", "stop all services and the engine")
    down.add_argument("--force", action="store_true", help="kill an engine that does not answer, and its services")

    status = add("status", "inspect", "show the services and their state", json=True)
    status.add_argument("services", nargs="*", metavar="SERVICE")

    toggle = add("toggle", "control", "move a service between local, remote and off")
    toggle.add_argument("service", metavar="SERVICE")
    toggle.add_argument("mode", nargs="?", choices=["local", "remote", "off"], help="default: the next one")

    attach = add("attach", "attach", "lead the cluster's traffic to a service that runs here")
    attach.add_argument("service", metavar="SERVICE")
    attach.add_argument(
        "--kind",
        choices=["intercept", "replace", "wiretap"],
        help="take its requests, its workload's place, or a copy (default: devloop.toml's, or intercept)",
    )
    which = attach.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_const", dest="routes", const="all", help="every request")
    which.add_argument(
        "--personal", action="store_const", dest="routes", const="personal", help="those with your baggage entry"
    )
    attach.add_argument(
        "--header",
        action="append",
        metavar="NAME=VALUE",
        help="those with this header (NAME^=START, NAME~REGEX); with several, all have to fit",
    )
    attach.add_argument("--path", metavar="/PREFIX", help="those whose path begins so (=/PATH: is so; ~REGEX)")
    attach.add_argument("--method", metavar="METHOD", help="those of this method")
    attach.add_argument("--share", metavar="PERCENT", help="so many of them")
    attach.add_argument(
        "--sni", metavar="NAME", help="on ports that speak TLS, connections that ask for this server (*.NAME: below it)"
    )
    attach.add_argument(
        "--port",
        action="append",
        metavar="LOCAL:REMOTE",
        help="the Service's port REMOTE, by name or number, leads to LOCAL here (default: all of its ports)",
    )
    attach.add_argument(
        "--way",
        choices=["service", "pods"],
        help="take it at the Service's address, or in each pod by a container with NET_ADMIN (default: service)",
    )
    attach.add_argument("--take-over", action="store_true", help="put back first what a dead devloop holds of it")

    move = add("move", "attach", "end connections that still lead to where a service was")
    move.add_argument("service", metavar="SERVICE")
    move.add_argument("--force", action="store_true", help="in the midst of a request, too")

    leave = add("leave", "attach", "give traffic back to the original pods")
    leave.add_argument("services", nargs="*", metavar="SERVICE", help="default: all that hold something")
    leave.add_argument(
        "--take-over", action="store_true", help="put back what a dead devloop holds, anybody's; needs no engine"
    )
    _of_a_cluster(leave)

    requests = add("requests", "attach", "show the requests that went through a service's attachments", json=True)
    requests.add_argument("service", metavar="SERVICE")
    requests.add_argument("-f", "--follow", action="store_true", help="go on as they come")
    requests.add_argument("-n", "--tail", type=count, default=100, metavar="N", help="requests to begin with")

    restart = add("restart", "control", "restart services")
    restart.add_argument("services", nargs="+", metavar="SERVICE")
    restart.add_argument("--build", action="store_true", help="build first")

    logs = add("logs", "inspect", "show what services print", json=True)
    logs.add_argument("services", nargs="*", metavar="SERVICE")
    logs.add_argument(
        "--remote", action="store_true", help="what the cluster's pods print: of services, or of workloads as KIND/NAME"
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    logs.add_argument(
        "-n", "--tail", type=count, metavar="LINES", help="lines to begin with (default: 200; with --since: all)"
    )
    logs.add_argument("--since", metavar="AGE", help="only what is not older, such as 90s, 5m, 2h")
    logs.add_argument("--level", type=_level, choices=_LEVELS, help="only lines of this level or above")

    terminal = add("terminal", "terminal", "type into a service, and see what it prints; Ctrl-P Ctrl-Q leaves it")
    terminal.add_argument("service", metavar="SERVICE")

    stats = add("stats", "inspect", "show how long feedback loops take, by phase", json=True)
    stats.add_argument("services", nargs="*", metavar="SERVICE")
    stats.add_argument("--since", default="90d", metavar="AGE", help="such as 30m, 12h, 7d (default: 90d)")
    stats.add_argument("--last", type=int, default=100, metavar="N", help="single loops to give with --json")

    export = add("export", "inspect", "write the history of loops for other tools")
    export.add_argument("services", nargs="*", metavar="SERVICE")
    export.add_argument("--format", choices=["chrome", "otlp", "csv"], default="chrome")
    export.add_argument("--since", default="90d", metavar="AGE", help="such as 30m, 12h, 7d (default: 90d)")
    export.add_argument("-o", "--output", metavar="FILE", help="default: standard output")

    execute = add("exec", "world", "run a command as a service sees the world", function="execute")
    _of_a_workload(execute)
    execute.add_argument("service", metavar="SERVICE", nargs="?")
    execute.set_defaults(parser=top)
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")

    env = add("env", "world", "show a service's environment, and where it comes from", json=True)
    _of_a_workload(env)
    env.add_argument("service", metavar="SERVICE", nargs="?")
    env.add_argument("--format", choices=["table", "dotenv", "json", "shell", "docker"], default="table")
    env.add_argument("--all", action="store_true", help="with what is inherited from this terminal")
    env.add_argument("--reveal", action="store_true", help="show secrets in the table")

    workloads = add("list", "list", "show the remote's workloads, and who holds what", json=True, function="show")
    _of_a_cluster(workloads)
    agent = commands.add_parser("agent", help="install the agent's pod, remove it, show it", description=_AGENT)
    actions = agent.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in _AGENT_ACTIONS.items():
        action = add(name, "agent", text, json=name == "status", to=actions)
        _of_a_cluster(action)
        if name in ("install", "manifest"):
            action.add_argument(
                "--image", metavar="IMAGE", help="the agent's (default: the project's, or the released)"
            )
        if name == "manifest":
            action.add_argument("--role-only", action="store_true", help="the Roles alone, with what each right is for")
            action.add_argument(
                "--role",
                choices=["link", "ingest", "attach", "self-service"],
                default="link",
                help="what developers may do, each with those before it (default: link)",
            )

    add("trust", "trust", "agree to what the project reaches outside of its folder, and to whose it is")
    add("check", "project", "check devloop.toml")
    add("schema", "project", "print the JSON schema of devloop.toml", file=False)
    init = add("init", "project", "write a devloop.toml from a Procfile, a compose file or the folder")
    init.add_argument("--force", action="store_true", help="replace the file that is there")
    init.add_argument("--stdout", action="store_true", help="print it instead")
    add("doctor", "doctor", "tell what works on this machine, and how to mend what does not", json=True)
    completion = add("completion", "completion", "print a completion script for your shell", file=False)
    completion.add_argument("shell", choices=["bash", "zsh", "fish", "tcsh"])
    completion.set_defaults(parser=top)
    help_ = add("help", "help", "show the help of a command", function="show", file=False)
    help_.add_argument("words", nargs="*", metavar="COMMAND")
    help_.set_defaults(parser=top)
    add("version", "help", "print devloop's version", file=False)
    names = commands.add_parser("names")  # what completion asks for; not listed
    names.set_defaults(run="devloop.commands.completion:names")

    engine = commands.add_parser("engine")  # what `up` starts; not listed
    engine.set_defaults(run="devloop.commands.engine:engine")
    engine.add_argument("--report", type=int, required=True, metavar="FD")
    engine.add_argument("--owner", type=int, metavar="FD")
    engine.add_argument("--state", metavar="FOLDER")
    engine.add_argument("--agreed-to", default="", metavar="DIGEST")
    _of_a_workload(engine)
    engine.add_argument("services", nargs="*")
    return top


def _of_a_workload(sub: argparse.ArgumentParser) -> None:
    """The options of a command that takes a service of the project, or any workload."""
    sub.add_argument(
        "-w",
        "--workload",
        metavar="KIND/NAME",
        help="a workload (deploy/web, sts/db, web); needs no project",
    )
    sub.add_argument("-c", "--container", metavar="NAME", help="with --workload: the container")
    _of_a_cluster(sub)


def _of_a_cluster(sub: argparse.ArgumentParser) -> None:
    """The options of a command that needs a cluster and no project."""
    sub.add_argument("--context", metavar="NAME", help="the kubeconfig's context (default: the project's, or current)")
    sub.add_argument("-n", "--namespace", metavar="NAME", help="default: the project's, or the context's")
    sub.add_argument("--kubeconfig", metavar="FILE", help="default: the project's, or as kubectl finds it")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. No error ends in a traceback but one of devloop's own making."""
    try:
        from devloop import streams
        from devloop.terminal import guarded

        if argv is None:
            streams.prepare()
        with guarded():
            return _main(argv)
    except KeyboardInterrupt:  # in these imports, which take as long as many a command
        return INTERRUPTED


def _level(word: str) -> str:
    return _LEVEL_ALIASES.get(word, word)


def _main(argv: Sequence[str] | None) -> int:
    from devloop import streams

    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        if argv is None:
            # What is left is Python's own end, which would answer a Ctrl-C with a traceback.
            import signal

            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return code
    except KeyboardInterrupt:
        streams.discard(sys.stdout)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has had enough (`devloop logs | head`). Python would complain once more at exit.
        streams.discard(sys.stdout)
        return 0
    except DevloopError as error:
        streams.tell(f"devloop: {error}")
        code = error.exit_code
    except (OSError, MemoryError, RecursionError) as error:
        from devloop.failures import explained

        streams.tell(f"devloop: {explained(error)}")
        code = 1
    except RuntimeError as error:
        from devloop.failures import explained, is_the_machines

        if not is_the_machines(error):
            raise
        streams.tell(f"devloop: {explained(error)}")
        code = 1
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        streams.discard(sys.stdout)
    return code


def _run(argv: Sequence[str]) -> int:
    try:
        from devloop.arguments import parse

        top = parser()
        args = parse(top, argv)
    except SystemExit as end:  # --help, --version, or a mistake, which has been told
        return end.code if isinstance(end.code, int) else 2
    if args.command is None:
        top.print_help(sys.stderr)
        return UsageError.exit_code
    module, _, name = args.run.partition(":")
    code = getattr(importlib.import_module(module), name)(args)
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""What commands share: the project that is meant, its engine, and tables."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devloop.config.find import FILE_NAME, find
from devloop.errors import UsageError
from devloop.state import StateFolder

if TYPE_CHECKING:
    from devloop.config.model import Service
    from devloop.protocol import Variable


def project_file(args: argparse.Namespace) -> Path:
    """The project file that is meant; it is not read. Raises UsageError or ConfigError if there is none."""
    if args.file is not None:
        path = Path(args.file).absolute()
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise UsageError("no such project file", where=str(path), hint="write one with `devloop init`")
        return path
    return find(Path.cwd())


def state_folder(args: argparse.Namespace) -> StateFolder:
    """The state folder of the project that is meant."""
    return StateFolder(project_file(args).parent)


def print_json(data: Any) -> None:
    """Indented for a person at a terminal, one line for a program."""
    print(json.dumps(data, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def age(text: str) -> int:
    """Nanoseconds of "30m", "12h" or "7d". Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise UsageError(f"{text!r} is no age", hint="a number and one of s, m, h, d, w: 30m, 12h, 7d")
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]
    return int(float(match[1]) * seconds * 1_000_000_000)


def colour() -> bool:
    """Whether to use colour on stdout (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def service_world(args: argparse.Namespace) -> tuple[Service, list[Variable]]:
    """The service that is meant and its environment, from the project file; no engine is asked.

    Raises ConfigError for a broken file, UsageError for a name that is no service's.
    """
    from devloop.engine.engine import load_project
    from devloop.local import environment

    project = load_project(project_file(args), os.environ, [args.service])
    service = project.services.get(args.service)
    if service is None:
        raise UsageError(f"{args.service} is a group", hint="name one service")
    return service, environment.resolve(service, os.environ, environment.own(project.name, service.name))

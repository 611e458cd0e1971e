"""What a stranger types, on a bare machine."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.kube.settings import CHECKOUT

from .machine import HOME, UID, USER, Machine, give, give_checkout, machine
from .root import PACKAGES, release

CLONE = f"{HOME}/devloop"
SPACED = f"{HOME}/a b/home"
"""A HOME, and with it a TMPDIR, in whose path is a space."""
ONCE_MORE = 3
"""So many failures may be races; more are not run again. As in .ci/run."""
TEXT_AND_PATHS = (
    *(f"tests/unit/{each}" for each in ("commands", "config", "local", "scaffold", "workload")),
    *(f"tests/unit/test_{each}.py" for each in ("docs", "escapes", "failures", "paths", "places")),
    *("tests/tui/test_run.py", "tests/tui/test_logs.py"),
    *("tests/integration/test_cli.py", "tests/integration/test_engine.py"),
)
"""What of the suite deals with text, files and terminals."""
Variables = Mapping[str, str]
EMPTY: Variables = {}
SUMMARY = re.compile(r"^=* ?(\d+ (?:passed|failed|error).*?) ?=*$")


@dataclass
class Report:
    """The closing lines."""

    lines: list[str] = field(default_factory=list)
    failed: bool = False

    def add(self, what: str, code: int, said: str = "") -> None:
        self.failed = self.failed or code != 0
        self.lines.append(f"{'ok  ' if code == 0 else 'FAIL'} {what}{': ' if said else ''}{said}")

    def close(self) -> int:
        print("\n" + "\n".join(self.lines), flush=True)
        return int(self.failed)


class Typist:
    """Types on a machine, and keeps pytest's last words."""

    def __init__(self, on: Machine, report: Report) -> None:
        self.on = on
        self.report = report
        self._closing = ""

    def types(
        self, line: str, *, folder: str = CLONE, files: tuple[int, int] = (1024, 1024), variables: Variables = EMPTY
    ) -> int:
        print(f"bare$ {line}", flush=True)

        def heard(said: str) -> None:
            if found := SUMMARY.match(said):
                self._closing = found[1]

        return self.on.run("sh", "-c", line, folder=folder, open_files=files, variables=variables, heard=heard)

    def tests(self, what: str, line: str, files: tuple[int, int] = (1024, 1024), variables: Variables = EMPTY) -> None:
        """A run of pytest. What failed is run once more, alone, and both results are told."""
        began, self._closing = time.monotonic(), ""
        code = self.types(line, files=files, variables=variables)
        said = f"{self._closing or 'no test ran'}"
        if code and 0 < self.failures() <= ONCE_MORE:
            code = self.types(".venv/bin/python -m pytest --last-failed tests", files=files, variables=variables)
            said += f"; FAILED ONCE, a race to be looked at: then {self._closing}"
        self.report.add(what, code or int(" passed" not in said), f"{said} ({time.monotonic() - began:.0f} s in all)")

    def failures(self) -> int:
        try:
            return len(json.loads((self.on.root / CLONE[1:] / ".pytest_cache/v/cache/lastfailed").read_text()))
        except (OSError, ValueError):
            return 0


def bare() -> int:
    """README's test command, text and paths in another locale, and the wheel. The exit code."""
    report = Report()
    suite = release()
    with machine(suite) as on:
        give_checkout(on, CHECKOUT)
        give(on, Path(__file__).with_name("first_hour.py"), "/srv/first_hour.py")
        report.lines.append(
            f"bare run: Debian {suite} with {', '.join(PACKAGES)}; user {USER} (uid {UID}), ulimit -n 1024, umask 077, "
            "no terminal"
        )
        typist = Typist(on, report)
        usual = {"PYTEST_ADDOPTS": "--tb=short"}
        typist.types("id; ulimit -n; umask; tty; python3 --version", folder=HOME)
        code = typist.types(f"git clone -q -c advice.detachedHead=false /srv/checkout.bundle {CLONE}", folder=HOME)
        report.add("git clone", code)
        typist.tests("make test, LANG=C.UTF-8", "make test", variables=usual)
        on.run("mkdir", "-p", SPACED, f"{SPACED}/tmp")
        typist.tests(
            f"text and paths, LANG=C, HOME={SPACED!r}",
            f".venv/bin/python -m pytest -n 2 -m 'not cluster' {' '.join(TEXT_AND_PATHS)}",
            (1024, 4096),
            {**usual, "LANG": "C", "HOME": SPACED, "TMPDIR": f"{SPACED}/tmp"},
        )
        wheel(typist)
    return report.close()


def wheel(typist: Typist) -> None:
    """Build it, install it where nothing is, take the checkout away, and use it."""
    environment = {"HOME": SPACED, "LANG": "C"}
    app, project = shlex.quote(f"{SPACED}/app"), shlex.quote(f"{SPACED}/project")
    install = "-m pip install --quiet --disable-pip-version-check"
    build = f"{HOME}/build/bin/python"
    log = f"{HOME}/build.log"
    steps = (
        (
            "python -m build",
            f"python3 -m venv {HOME}/build && {build} {install} build && "
            f"{{ {build} -m build --outdir {HOME}/dist {CLONE} >{log} 2>&1 || {{ cat {log}; exit 1; }}; }}",
        ),
        (
            "the wheel into an empty environment, and the checkout taken away",
            f"python3 -m venv {app} && {app}/bin/python {install} -c {CLONE}/constraints.txt {HOME}/dist/*.whl && "
            f"mv {CLONE} {HOME}/gone && chmod 0 {HOME}/gone",
        ),
        (
            "its init, check, up --headless, status, down",
            f"python3 -I /srv/first_hour.py {app}/bin/devloop {project}",
        ),
    )
    for what, line in steps:
        code = typist.types(line, folder=HOME, variables=environment)
        typist.report.add(what, code)
        if code:
            return

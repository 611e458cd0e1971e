"""The unit tests on every version of Python that the package says it is for, where one can be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.cluster.kube.settings import CHECKOUT

from .machine import HOME, give_checkout, machine
from .readme import CLONE, Report, Typist
from .root import cache

DEBIAN = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky"}
"""Which release of Debian has a version of Python as its own."""
TESTS = "python -m pytest -q -n 2 -p no:cacheprovider tests/unit"


def named() -> list[str]:
    """The versions that the package's classifiers name."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    return [each.removeprefix(prefix) for each in project["classifiers"] if each.startswith(f"{prefix}3.")]


def interpreter(version: str) -> str | None:
    """An interpreter of that version on this machine: on PATH, or where pyenv keeps its own."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True))]
    for each in found:
        # pyenv's stand-ins are on PATH whether their version is chosen or not.
        if each and not subprocess.run([each, "-c", "import venv, ensurepip"], capture_output=True).returncode:
            return each
    return None


def versions() -> int:
    """Run them; the exit code. The version that this runs with has the whole suite, and is left out."""
    report = Report()
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for version in named():
        if version == own:
            report.lines.append(f"     Python {version}: the whole suite runs with it")
        elif (found := interpreter(version)) is not None:
            here(version, found, report)
        elif version in DEBIAN:
            on_debian(version, DEBIAN[version], report)
        else:
            report.lines.append(f"     Python {version}: NOT RUN, neither this machine nor a release of Debian has it")
    return report.close()


def here(version: str, python: str, report: Report) -> None:
    """With an interpreter of this machine, in an environment outside of the checkout."""
    environment = cache() / f"python-{version}"
    shutil.rmtree(environment, ignore_errors=True)
    setup = ["make", "-s", "setup", "HASHED=1", f"PYTHON={python}", f"VENV={environment}"]
    if subprocess.run(setup, cwd=CHECKOUT, stdin=subprocess.DEVNULL).returncode:
        report.add(f"Python {version} ({python})", 1, "its environment can't be made")
        return
    process = subprocess.Popen(
        [f"{environment}/bin/{TESTS.split()[0]}", *TESTS.split()[1:]],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip().strip("= ") or last
    report.add(f"Python {version} ({python}), unit tests", process.wait(), last)
    shutil.rmtree(environment)


def on_debian(version: str, suite: str, report: Report) -> None:
    """On a bare machine with the release of Debian that has it."""
    with machine(suite) as on:
        give_checkout(on, CHECKOUT)
        typist = Typist(on, report)
        if typist.types(f"git clone -q -c advice.detachedHead=false /srv/checkout.bundle {CLONE}", folder=HOME):
            report.add(f"Python {version} (Debian {suite})", 1, "no clone")
            return
        is_it = f"python3 -c 'import sys; assert sys.version.startswith(\"{version}.\"), sys.version'"
        line = f"{is_it} && make -s setup HASHED=1 && .venv/bin/{TESTS}"
        typist.tests(f"Python {version} (Debian {suite}), unit tests", line)

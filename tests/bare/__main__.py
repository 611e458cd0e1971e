"""`python3 -m tests.bare [readme|versions|run COMMAND …]`: as root, from the root of the checkout."""

from __future__ import annotations

import argparse
import os
import sys

from tests.cluster.kube import packages
from tests.cluster.kube.errors import ClusterError
from tests.cluster.kube.settings import CHECKOUT

from .machine import HOME, give_checkout, machine
from .readme import bare
from .root import release
from .versions import versions

NEEDED = {"debootstrap": "debootstrap", "git": "git", "tar": "tar", "util-linux": "setpriv"}
"""Package → a program of it."""


def main() -> int:
    """The exit code is 0 only if all of it did as promised."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bare", description=__doc__)
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("readme", help="README's commands on a bare machine, and the wheel (the default)")
    verbs.add_parser("versions", help="the unit tests on the other versions of Python")
    run = verbs.add_parser("run", help="run a command on a bare machine, as its user")
    run.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it takes root: a root file system is made and entered")
    if lacking := [package for package, program in NEEDED.items() if not packages.found(program)]:
        parser.error(f"missing from this machine: apt-get install {' '.join(lacking)}")
    try:
        match arguments.verb:
            case "versions":
                return versions()
            case "run":
                with machine(release()) as on:
                    give_checkout(on, CHECKOUT)
                    return on.run(*arguments.command, folder=HOME)
            case _:
                return bare()
    except ClusterError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.cluster.kube VERB`: the test cluster from the command line."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .cluster import Cluster
from .errors import ClusterError
from .settings import Settings


def main() -> int:
    """Run one verb; the exit code is 0 when it did what it says."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.kube", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="install, compile and pack what the cluster needs, and start nothing")
    verbs.add_parser("up", help="build what is missing and start the cluster; nothing happens if it runs")
    verbs.add_parser("down", help="stop the cluster and remove all that it left on this machine")
    verbs.add_parser("status", help="say whether it runs (exit code 1 if not)")
    archive = verbs.add_parser("archive", help="write the images to a file, for another cluster's containerd")
    archive.add_argument("file", type=Path, help="a tar as `docker save` makes it: kind load image-archive FILE")
    verbs.add_parser("kubectl", help="run kubectl as the cluster's administrator", add_help=False)
    arguments, rest = parser.parse_known_args()
    if rest and arguments.verb != "kubectl":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    started = time.monotonic()
    try:
        cluster = Cluster(Settings.of_environment())
        match arguments.verb:
            case "build":
                cluster.build()
            case "up":
                times = cluster.up()
                phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.phases.items())
                print(f"up in {time.monotonic() - started:.1f} s ({phases or 'it was running'})")
                print(f"export KUBECONFIG={cluster.settings.admin}")
            case "down":
                cluster.down()
                print(f"down in {time.monotonic() - started:.1f} s")
            case "status":
                healthy = cluster.healthy()
                print("running" if healthy else "not running")
                return 0 if healthy else 1
            case "kubectl":
                print(cluster.kubectl(*rest), end="")
            case "archive":
                cluster.archive(arguments.file)
    except ClusterError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

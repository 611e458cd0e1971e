"""Run benchmarks by name; see the package's docstring."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

from benchmarks.figures import Result, keep, machine, machine_line

NAMES = ("save_to_process", "loop_share", "startup", "idle", "log_flood", "big_folder", "datagrams")
ON_REQUEST = ("tunnel", "passthrough", "attach")
"""They need more than this machine: root, a cluster."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: these); {', '.join(ON_REQUEST)}"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how fast it is")
    args = parser.parse_args()
    if unknown := set(args.names) - {*NAMES, *ON_REQUEST}:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    # What a shell starts in the background ignores it, and so would every tool: some end their service by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # So that tools and services are ended on the way out then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    info = machine()
    print(f"{machine_line(info)}\n", flush=True)
    results: list[Result] = []
    for name in args.names or NAMES:
        result = importlib.import_module(f"benchmarks.{name}").run(quick=args.quick)
        for table in result.tables:
            print(table.markdown(), flush=True)
        results.append(result)
    print(f"Raw values: {keep(results, info, quick=args.quick)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.cluster.trial`: a long trial by hand, with the figures after each event."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

TEST = Path(__file__).parents[1] / "test_trial.py"


def main() -> int:
    """Run one trial; the exit code is 0 if nothing was above its floor and all objects are as they were."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.trial", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the events' order (default: a random one, which is printed)")
    parser.add_argument("--minutes", type=float, default=60, help="how long events go on (default: 60)")
    parser.add_argument("--steps", help="these events instead, such as 'attach web, rollout web, leave web'")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(2))
    environ = {**os.environ, "DEVLOOP_TRIAL_SEED": str(seed), "DEVLOOP_TRIAL_MINUTES": str(arguments.minutes)}
    if arguments.steps:
        environ["DEVLOOP_TRIAL_STEPS"] = arguments.steps
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:xdist", str(TEST), "-k", "a_trial_by_hand"]
    return subprocess.run(command, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

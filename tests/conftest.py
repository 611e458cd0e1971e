"""What holds for every test."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import HealthCheck, settings

# What tests agree to (`devloop trust`) and their keys are not the user's.
# The test cluster is theirs: it goes on after the tests, and they find it where `make cluster` has put it.
os.environ.setdefault("DEVLOOP_TEST_STATE_HOME", os.environ.get("XDG_STATE_HOME", ""))
_STATE = tempfile.mkdtemp(prefix="devloop-tests-")
os.environ["XDG_STATE_HOME"] = _STATE
atexit.register(shutil.rmtree, _STATE, ignore_errors=True)

pytest_plugins = ["tests.stuck"]

# Who runs the tests in a script's background (`make test &`) has SIGINT ignored (POSIX, Shell Command Language, 2.11),
# and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How quick a shared machine is decides nothing.
settings.register_profile("devloop", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("devloop")

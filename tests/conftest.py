"""What holds for every test."""

from __future__ import annotations

import signal

pytest_plugins = ["tests.stuck"]

# Who runs the tests in a script's background (`make test &`) has SIGINT ignored (POSIX, Shell Command Language, 2.11),
# and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

"""A holder with a namespace: what `devloop.local.holder` does with it, and nothing else of devloop's.

`python -I -S hold.py NAMESPACE_FD COMMANDS_FD PACKAGES`. Over the second socket: {argv, env, cwd} with
[stdin, stdout, stderr] starts a process; its exit code comes back as {pid, code}, after {pid}.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys


def main() -> None:
    sys.path.append(sys.argv[3])
    from devloop.net.namespace import Namespace

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    namespace = Namespace(socket.socket(fileno=int(sys.argv[1])))
    commands = socket.socket(fileno=int(sys.argv[2]))
    wakeup, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    poll = select.poll()
    for readable in (namespace, commands, wakeup):
        poll.register(readable, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if namespace.fileno() in ready and not namespace.obey():
            break
        if wakeup in ready:
            os.read(wakeup, 4096)
            try:
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    code = os.waitstatus_to_exitcode(ended[1])
                    commands.send(json.dumps({"pid": ended[0], "code": code}).encode())
            except ChildProcessError:
                pass
        if commands.fileno() in ready:
            data, fds, _, _ = socket.recv_fds(commands, 1 << 20, 3)
            if not data:
                break
            message = json.loads(data)
            namespace.refresh()
            process = subprocess.Popen(
                message["argv"],
                stdin=fds[0],
                stdout=fds[1],
                stderr=fds[2],
                env=message["env"],
                cwd=message["cwd"],
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),
            )
            process.returncode = 0
            for fd in fds:
                os.close(fd)
            commands.send(json.dumps({"pid": process.pid}).encode())


if __name__ == "__main__":
    main()

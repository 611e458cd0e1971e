"""The cluster from nothing to ready, and back to nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import binaries, cgroups, images, layers, packages, pki
from .components import Components
from .errors import ClusterError
from .sandbox import Sandbox
from .settings import NODE, SOURCES, Settings, cache
from .waiting import until

READY_SECONDS = 90
PATIENCE_SECONDS = 15


@dataclass
class Times:
    """How long each phase took, in seconds since `up` began."""

    started: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)

    def note(self, phase: str) -> None:
        self.phases[phase] = time.monotonic() - self.started


class Cluster:
    """One cluster on this machine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sandbox = Sandbox(settings)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One build, `up` or `down` at a time on this machine.

        The lock is the cache's folder, which stays: a lock file that `down` removed would let two in.
        """
        folder = cache()
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield
        finally:
            os.close(held)

    def need_root(self) -> None:
        if os.geteuid() != 0:
            raise ClusterError(
                "Only root can make the network and mount namespaces of a node",
                "Run this as root, or name a cluster of your own with DEVLOOP_TEST_KUBECONFIG.",
            )

    def build(self) -> tuple[Path, Path]:
        """Install, compile and pack what is not there yet: the folders of programs and of images."""
        self.need_root()
        with self.locked():
            if installed := packages.install():
                print(f"installed {' '.join(installed)}", flush=True)
            # The compiler keeps the processors busy and debootstrap the disk: side by side.
            with ThreadPoolExecutor(1) as beside:
                slow_layers = beside.submit(images.build_slow_layers)
                programs = binaries.build()
                slow_layers.result()
            return programs, images.build(programs)

    def archive(self, out: Path) -> None:
        """Write the images to one file, for a cluster that is not ours."""
        self.build()
        layers.archive(images.images(binaries.build()), out)

    def up(self) -> Times:
        """Start the cluster, or see that it runs; whatever fails, nothing stays behind half started."""
        self.need_root()
        programs, template = self.build()
        with self.locked():
            times = Times()
            if self.healthy():
                if self.runs(programs, template):
                    return times
                print("programs or images have changed since it was started: starting it anew", flush=True)
            self.sandbox.destroy()  # an older one, or what a crash has left
            try:
                self.start(Components(self.settings, programs), template, times)
            except BaseException as problem:
                kept = self.keep_logs()
                self.sandbox.destroy()
                if isinstance(problem, ClusterError) and kept:
                    raise ClusterError(problem.what, f"{problem.hint}\n  Logs: {kept}".strip()) from None
                raise
            return times

    def runs(self, programs: Path, template: Path) -> bool:
        """The cluster was started with these programs and images, and with these families of addresses."""
        etc = self.settings.state / "etc"
        with contextlib.suppress(OSError):
            same = (etc / "programs").samefile(programs) and (etc / "images").samefile(template)
            return same and (etc / "families").read_text().split() == [
                str(each.version) for each in self.settings.families
            ]
        return False

    def start(self, components: Components, template: Path, times: Times) -> None:
        settings, sandbox = self.settings, self.sandbox
        settings.state.mkdir(parents=True, exist_ok=True)
        settings.state.chmod(0o700)
        images.provide(template, settings.state / "containerd")
        pki.create(settings)
        cgroups.create(settings.cgroup)
        sandbox.create()
        times.note("node")
        sandbox.start("etcd", components.etcd())
        sandbox.start("apiserver", components.apiserver())
        sandbox.start("containerd", components.containerd())
        (settings.state / "etc" / "programs").symlink_to(components.programs)
        (settings.state / "etc" / "images").symlink_to(template)
        (settings.state / "etc" / "families").write_text(" ".join(str(each.version) for each in settings.families))
        # These two retry by themselves, but wait longer between their tries than the API server takes.
        self.wait("The API server is not ready", lambda: self.get("/readyz") == b"ok", "apiserver")
        times.note("API server")
        sandbox.start("controllers", components.controllers())
        sandbox.start("scheduler", components.scheduler())
        sandbox.start("kubelet", components.kubelet())
        self.apply(SOURCES / "manifests" / "system.yaml")
        sandbox.start("proxy", components.proxy())
        # Nothing waits for it: a pod that no policy selects does not need it.
        sandbox.start("policies", components.policies())
        argv, env = components.provisioner()
        sandbox.start("provisioner", argv, env)
        self.wait("The node is not ready", self.node_ready, "kubelet")
        times.note("node ready")
        self.wait("Cluster DNS is not ready", self.dns_ready, "kubelet")
        times.note("DNS ready")

    def wait(self, what: str, ready: Callable[[], bool], log: str) -> None:
        """Wait for a part of the cluster; if it does not come, its log is in the error."""

        def quiet() -> bool:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return ready()
            return False

        until(quiet, READY_SECONDS, what, lambda: self.log_tail(log))

    def log_tail(self, name: str, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            text = (self.settings.state / "logs" / f"{name}.log").read_text(errors="replace")
            return f"{name}.log:\n" + "\n".join(text.splitlines()[-lines:])
        return f"{name} wrote no log"

    def get(self, path: str) -> bytes:
        """GET a path of the API server as the administrator; an OSError if it does not answer with 200."""
        etc = self.settings.state / "etc"
        context = ssl.create_default_context(cafile=etc / "ca.crt")
        context.load_cert_chain(etc / "admin.crt", etc / "admin.key")
        # No proxy: the node is on this machine whatever the environment says.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(self.settings.server + path, timeout=5) as answer:
            body: bytes = answer.read()
            return body

    def object(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(path))
        return found

    def node_ready(self) -> bool:
        conditions = self.object(f"/api/v1/nodes/{NODE}")["status"]["conditions"]
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def dns_ready(self) -> bool:
        """CoreDNS is ready, and the proxy has led the first Service to it."""
        status = self.object("/apis/apps/v1/namespaces/kube-system/deployments/coredns")["status"]
        if not status.get("readyReplicas"):
            return False
        first = self.settings.first
        rules = subprocess.run(
            self.sandbox.inside("nft", "list", "table", "ip6" if first.version == 6 else "ip", "kube-proxy"),
            capture_output=True,
            text=True,
            check=False,
        )
        return "endpoint-" in rules.stdout and first.dns in rules.stdout

    def healthy(self) -> bool:
        """All of it runs, and answers now or within some seconds: on a busy machine a probe of DNS comes late at times,
        and a cluster that is in use is not to be started anew for that."""
        expected = {"etcd", "apiserver", "containerd", "controllers", "scheduler", "kubelet", "proxy"}

        def answers() -> bool:
            with contextlib.suppress(OSError, KeyError, ValueError):
                return self.node_ready() and self.dns_ready()
            return False

        try:
            if not expected <= self.sandbox.running().keys():
                return False
            until(answers, PATIENCE_SECONDS, "The cluster does not answer")
        except (OSError, ClusterError, KeyError, ValueError):
            return False
        return True

    def apply(self, manifest: Path) -> None:
        """Apply a manifest as the administrator, with this cluster's addresses filled in."""
        settings, text = self.settings, manifest.read_text()
        names = "\n".join(f"    {each} node.vpc.test" for each in settings.node_ips)
        text = text.replace("DNS_IP", f'"{settings.first.dns}"').replace("    NODE_IP node.vpc.test", names)
        self.kubectl("apply", "--filename=-", "--validate=false", input=text)

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Run our own kubectl as the administrator; returns what it prints."""
        program = self.settings.state / "etc" / "programs" / "kubectl"
        done = subprocess.run(
            [str(program), f"--kubeconfig={self.settings.admin}", *arguments],
            input=input,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HOME": str(self.settings.state)},
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def is_built(self) -> bool:
        """What takes minutes is in the cache, so that `up` is a matter of seconds."""
        return not packages.missing() and binaries.is_built() and images.is_built()

    def restart_kubelet(self) -> None:
        """End the kubelet and start it anew; returns when the new one answers for every pod of the node."""
        programs = (self.settings.state / "etc" / "programs").resolve()
        self.sandbox.stop("kubelet")
        self.sandbox.start("kubelet", Components(self.settings, programs).kubelet())
        self.wait("The kubelet does not come back", self.kubelet_knows_its_pods, "kubelet")

    def kubelet_knows_its_pods(self) -> bool:
        """Until it does, it answers "404" to an exec or a port-forward."""
        bound = self.object(f"/api/v1/pods?fieldSelector=spec.nodeName={NODE}")["items"]
        known = self.object(f"/api/v1/nodes/{NODE}/proxy/pods").get("items") or []
        return {each["metadata"]["uid"] for each in bound} <= {each["metadata"]["uid"] for each in known}

    def down(self) -> None:
        """Take the cluster away, with all that it left on the machine; no matter in what state it is."""
        self.need_root()
        with self.locked():
            self.sandbox.destroy()
            shutil.rmtree(self.failed_logs, ignore_errors=True)
        # The folders above the state folder, if they are empty now.
        with contextlib.suppress(OSError):
            for folder in list(self.settings.state.parents)[:2]:
                folder.rmdir()

    def keep_logs(self) -> Path | None:
        """Copy the logs of a start that failed to beside the state folder, which goes."""
        logs = self.settings.state / "logs"
        if not logs.exists():
            return None
        shutil.rmtree(self.failed_logs, ignore_errors=True)
        shutil.copytree(logs, self.failed_logs)
        return self.failed_logs

    @property
    def failed_logs(self) -> Path:
        """Where the logs of a start that failed are kept, until `down`."""
        return self.settings.state.with_suffix(".failed")

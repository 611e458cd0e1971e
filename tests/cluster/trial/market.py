"""The market at the cluster: deployed, asked from inside by three languages, and compared with what it was."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import kit
from tests.cluster.conftest import Target
from tests.cluster.kit import ApiClient, client
from tests.cluster.kube.settings import CHECKOUT

IMAGE = "devloop.test/market:1"
APPS = CHECKOUT / "tests" / "cluster" / "apps"
MANIFEST = APPS / "manifests" / "market.yaml"
PERSON = {"x-user": "ben"}
"""The header whose requests are the second developer's."""


def plan(service: str, kind: str, port: int, every: int, **more: Any) -> dict[str, Any]:
    """Clients of one service; its name says what they are."""
    target = f"{more.pop('host', service)}:{port}"
    return {"service": service, "kind": kind, "target": target, "every": every, **more}


HELD = {"held": True}
PLANS: dict[str, dict[str, dict[str, Any]]] = {
    "go": {
        "web http held": plan("web", "http", 8080, 150, connections=3, **HELD),
        "web post held": plan("web", "http", 8080, 150, method="POST", connections=2, **HELD),
        "web http new": plan("web", "http", 8080, 50),
        "web http ben": plan("web-ben", "http", 8080, 200, host="web", headers=PERSON),
        "web socket": plan("web", "ws", 8080, 150, connections=2, **HELD),
        "web greeted new": plan("web", "greet", 2525, 100),
        "web greeted held": plan("web", "greet", 2525, 200, connections=2, **HELD),
        "checkout call held": plan("checkout", "one", 9090, 100, connections=2, **HELD),
        "checkout call new": plan("checkout", "one", 9090, 150),
        "checkout chain": plan("checkout", "chain", 9090, 250, **HELD),
        "checkout stream through": plan("checkout", "through", 9090, 1500, **HELD),
        "checkout chat": plan("checkout", "chat", 9090, 150, connections=2, **HELD),
        "prices stream": plan("prices", "count", 9090, 700, **HELD),
        "prices call new": plan("prices", "one", 9090, 200),
        "stock stream": plan("stock", "count", 9090, 700, **HELD),
        "color http new": plan("color", "http", 80, 100),
        "color http held": plan("color", "http", 80, 200, connections=2, **HELD),
        "shelf-0 http held": plan("shelf", "http", 8080, 200, host="shelf-0.shelf", **HELD),
        "shelf-1 http new": plan("shelf", "http", 8080, 200, host="shelf-1.shelf"),
        "queue": plan("worker", "queue", 6379, 100, host="queue", deadline=30, **HELD),
    },
    "python": {
        "web http held (python)": plan("web", "http", 8080, 200, connections=2, **HELD),
        "checkout call held (python)": plan("checkout", "one", 9090, 200, **HELD),
        "prices call held (python)": plan("prices", "one", 9090, 200, **HELD),
        "prices chat (python)": plan("prices", "chat", 9090, 250, **HELD),
    },
    "node": {
        "web http held (node)": plan("web", "http", 8080, 200, connections=2, **HELD),
        "checkout call held (node)": plan("checkout", "one", 9090, 200, **HELD),
        "checkout call new (node)": plan("checkout", "one", 9090, 300),
        "stock chat (node)": plan("stock", "chat", 9090, 250, **HELD),
    },
}
CLIENTS = {name: each for plans in PLANS.values() for name, each in plans.items()}
COMMANDS = {
    "go": "exec /opt/market/bin/market load /tmp/plan.json",
    "python": "exec python3 /opt/market/python/load.py /tmp/plan.json",
    "node": "exec node /opt/market/node/market.js load /tmp/plan.json",
}
READY_SECONDS = 90.0


class Kubectl:
    """The cluster's kubectl as its administrator, in one namespace: the other people, and the controllers' doings."""

    def __init__(self, cluster: Target, namespace: str) -> None:
        program = shutil.which("kubectl")
        if cluster.own is not None:
            program = str(cluster.own.settings.state / "etc" / "programs" / "kubectl")
        if program is None:
            pytest.skip("there is no kubectl for the cluster that DEVLOOP_TEST_KUBECONFIG names")
        self.argv = [program, f"--kubeconfig={cluster.admin}", f"--namespace={namespace}"]

    async def __call__(self, *arguments: str, text: str = "") -> str:
        """Run it to its end; raises AssertionError with what it says if it fails."""
        process = await asyncio.create_subprocess_exec(
            *self.argv,
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdout, stderr = await process.communicate(text.encode())
        assert process.returncode == 0, f"kubectl {' '.join(arguments)}: {stderr.decode()}"
        return stdout.decode()


class Market:
    """The application and its load, in a namespace."""

    def __init__(self, cluster: Target, admin: ApiClient, namespace: str, folder: Path) -> None:
        self.admin = admin
        self.namespace = namespace
        self.folder = folder
        self.kubectl = Kubectl(cluster, namespace)
        self._stack = ExitStack()
        self._lines: list[dict[str, Any]] = []
        self._read = dict.fromkeys(PLANS, 0)

    async def deploy(self) -> None:
        """Apply the manifests, and wait until everything is ready."""
        await self.kubectl("apply", "--filename", str(MANIFEST))
        await self.ready()

    async def ready(self, *workloads: str) -> None:
        """Wait for rollouts; of all by default."""
        for each in workloads or (
            *("deployment/web", "deployment/checkout", "deployment/prices", "deployment/stock", "deployment/blue"),
            *("deployment/green", "deployment/queue", "deployment/worker", "statefulset/shelf"),
        ):
            await self.kubectl("rollout", "status", each, f"--timeout={READY_SECONDS:g}s")

    async def ask(self) -> None:
        """Start the load, in a pod for each language; returns when every client has had answers."""
        core = client.CoreV1Api(self.admin)
        for language, plans in PLANS.items():
            lines = json.dumps([{"name": name, **each} for name, each in plans.items()])
            container = client.V1Container(
                name="main",
                image=IMAGE,
                image_pull_policy="IfNotPresent",
                command=["sh", "-c", f'printf %s "$PLAN" >/tmp/plan.json && {COMMANDS[language]}'],
                env=[client.V1EnvVar(name="PLAN", value=lines)],
                security_context=kit.RESTRICTED,
                resources=client.V1ResourceRequirements(requests={"cpu": "100m"}),
            )
            spec = client.V1PodSpec(containers=[container], termination_grace_period_seconds=5, restart_policy="Never")
            meta = client.V1ObjectMeta(name=f"load-{language}", labels={"role": "load"})
            await core.create_namespaced_pod(self.namespace, client.V1Pod(metadata=meta, spec=spec))
        for language in PLANS:
            await kit.pod_ready(self.admin, self.namespace, f"load-{language}")
            out = self._stack.enter_context((self.folder / f"{language}.jsonl").open("wb"))
            argv = [*self.kubectl.argv, "logs", "--follow", f"load-{language}"]
            process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)  # noqa: ASYNC220 - milliseconds
            self._stack.callback(process.wait)
            self._stack.callback(process.kill)

        async def silent() -> list[str]:
            heard = {each["client"] for each in self.lines() if each.get("ok")}
            return sorted(CLIENTS.keys() - heard)

        await kit.eventually(silent, [], READY_SECONDS)

    def lines(self) -> list[dict[str, Any]]:
        """Everything that the clients have said so far."""
        for language in PLANS:
            with (self.folder / f"{language}.jsonl").open("rb") as file:
                file.seek(self._read[language])
                whole = file.read().rpartition(b"\n")[0]
            self._read[language] += len(whole) + bool(whole)
            try:
                self._lines += [json.loads(line) for line in whole.splitlines()]
            except ValueError:
                raise AssertionError(f"load-{language} says: {whole[-500:].decode(errors='replace')}") from None
        return self._lines

    async def end(self) -> None:
        """Stop the load."""
        for language in PLANS:
            await self.kubectl("delete", "pod", f"load-{language}", "--ignore-not-found", "--wait=false")

    def close(self) -> None:
        """Stop listening to it."""
        self._stack.close()

    # What other people do.

    async def apply(self, *names: str) -> None:
        """Apply original objects of these names (KIND/NAME, as kubectl writes it)."""
        await self.kubectl("apply", "--filename=-", text=_manifests(*names))

    async def size(self, workload: str) -> int:
        """How many replicas its spec asks for."""
        return int(await self.kubectl("get", workload, "--output=jsonpath={.spec.replicas}"))

    async def pods(self, workload: str) -> list[str]:
        """Those of a Deployment that have not gone."""
        found = (await self.kubectl("get", "pods", "--output=name")).split()
        return [each for each in found if each.startswith(f"pod/{workload}-")]

    async def objects(self) -> dict[str, Any]:
        """All that somebody has made in the namespace, without what says when and how often it was made."""
        kinds = (
            "services,deployments,statefulsets,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,"
            "leases,horizontalpodautoscalers,poddisruptionbudgets"
        )
        found = json.loads(await self.kubectl("get", kinds, "--output=json"))
        return {f"{each['kind']}/{each['metadata']['name']}": _normal(each) for each in found["items"]}


ROLLED = "trial.devloop.test/rolled"
"""The annotation by which the trial starts a rollout."""


def _normal(each: dict[str, Any]) -> dict[str, Any]:
    meta = each["metadata"]
    for key in ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"):
        meta.pop(key, None)
    meta.get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
    each.pop("status", None)
    spec = each.get("spec", {})
    if each["kind"] == "Service" and spec.get("clusterIP") != "None":
        spec.pop("clusterIP", None)  # another one, if the Service was made anew
        spec.pop("clusterIPs", None)
    template = spec.get("template", {}).get("metadata", {})
    if (annotations := template.get("annotations")) is not None:
        annotations.pop(ROLLED, None)
        if not annotations:
            template.pop("annotations")
    return each


def _manifests(*names: str) -> str:
    chosen = []
    for document in MANIFEST.read_text().split("\n---\n"):
        each = yaml.safe_load(document)
        if f"{each['kind'].lower()}/{each['metadata']['name']}" in names:
            chosen.append(document)
    assert len(chosen) == len(names), names
    return "\n---\n".join(chosen)

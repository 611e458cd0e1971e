"""What becomes of pods: started, ready, crashed, ended; their files and their network."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from devloop.errors import RemoteError, ServiceError
from devloop.net.service import ServiceNetwork
from devloop.remote.link import OpenError, Refusal
from devloop.remote.workload import references as kinds
from devloop.remote.workload.model import Object
from devloop.remote.workload.view import Options, open_view
from devloop.sandbox import network

from .conftest import Box, Start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

SERVE = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path != "/ready" or os.path.exists("/scratch/ready") else 503)
        self.end_headers()
        self.wfile.write(os.environ["HOSTNAME"].encode())
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


def indented(text: str, by: int) -> str:
    return text.replace("\n", "\n" + " " * by)


def served_by(answer: str) -> str:
    return answer.partition("\r\n\r\n")[2]


def deployment(name: str, container: str, *, replicas: int = 1, kind: str = "Deployment", pod: str = "") -> str:
    return f"""
kind: {kind}
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      {pod or "terminationGracePeriodSeconds: 1"}
      containers:
      - name: main
        image: app
        {indented(container, 8)}
---
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{port: 80, targetPort: 8000}}]
"""


def python(script: str, *arguments: str) -> str:
    return f"command: {json.dumps(['python3', '-c', script, *arguments])}"


HTTP = python(SERVE, "", "8000") + "\nreadinessProbe: {httpGet: {path: /, port: 8000}, periodSeconds: 1}"


async def test_a_crashed_container_is_started_again(start: Start) -> None:
    once = "import os,sys\nif not os.path.exists('/scratch/was'): open('/scratch/was', 'w'); sys.exit(3)\n"
    box: Box = await start(
        deployment(
            "web",
            # Without a probe it would be ready before it listens, as in a cluster.
            python(once + SERVE, "", "8000")
            + "\nvolumeMounts: [{name: scratch, mountPath: /scratch}]"
            + "\nreadinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}",
            pod="volumes: [{name: scratch, emptyDir: {}}]",
        ),
        wait=False,
    )
    await box.says("container main exited with 3; it starts again in 0.1 s")
    await box.sandbox.ready(10)
    (pod,) = await box.pods()
    status = pod["status"]["containerStatuses"][0]
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["exitCode"] == 3
    # And one that is killed while it serves.
    os.kill(box.pid(pod["metadata"]["name"]), signal.SIGKILL)
    await box.says("container main was ended by SIGKILL")
    await box.until(lambda found: found[0]["status"]["containerStatuses"][0]["restartCount"] == 2)
    await box.sandbox.ready(10)
    assert served_by(await box.get("web", 80)) == pod["metadata"]["name"]


async def test_a_pod_whose_holder_is_killed_starts_anew(start: Start) -> None:
    box: Box = await start(deployment("web", HTTP))
    before = served_by(await box.get("web", 80))
    holder = int(await box.run("web", "sh", "-c", "echo $PPID"))
    os.kill(holder, signal.SIGKILL)
    await box.says("the process that held it was killed")
    await box.until(lambda found: found[0]["status"]["containerStatuses"][0]["restartCount"] == 1)
    assert await box.sandbox.ready(20) == ()
    assert served_by(await box.get("web", 80)) == before


async def test_only_ready_pods_get_traffic(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = "readinessProbe: {httpGet: {path: /ready, port: 8000}, periodSeconds: 1, failureThreshold: 1}"
    mounts = "volumeMounts: [{name: scratch, mountPath: /scratch}]"
    serve = python(SERVE, "", "8000")
    pod = "volumes: [{name: scratch, emptyDir: {}}]"
    box: Box = await start(
        deployment("web", f"{serve}\n{ready}\n{mounts}", replicas=3, kind="StatefulSet", pod=pod), wait=False
    )
    await box.until(lambda found: all("running" in each["status"]["containerStatuses"][0]["state"] for each in found))
    monkeypatch.setattr(network, "COMING_SECONDS", 0.1)
    with pytest.raises(OpenError) as refused:
        await box.get("web", 80)
    assert refused.value.refusal is Refusal.REFUSED

    async def switch(pod: str, *, on: bool) -> None:
        await box.run(pod, "touch" if on else "rm", "/scratch/ready")
        wanted = str(on)
        await box.until(lambda found: found[0]["status"]["conditions"][-1]["status"] == wanted, pod)

    for name in ("web-0", "web-2"):
        await switch(name, on=True)
    seen = {served_by(await box.get("web", 80)) for _ in range(6)}
    assert seen == {"web-0", "web-2"}
    await switch("web-0", on=False)
    assert {served_by(await box.get("web", 80)) for _ in range(4)} == {"web-2"}
    (found,) = (await box.sandbox.cluster.listing(kinds.Kind("EndpointSlice", "endpointslices"))).items
    listed = {each["targetRef"]["name"]: each["conditions"]["ready"] for each in found["endpoints"]}
    assert listed == {"web-0": False, "web-1": False, "web-2": True}
    owner = await box.sandbox.cluster.get(kinds.STATEFUL_SET, "web")
    assert owner["status"]["readyReplicas"] == 1


async def test_connections_wait_for_pods_at_their_first_start(start: Start) -> None:
    late = "import time; time.sleep(0.5)\n" + SERVE
    box: Box = await start(
        deployment("web", HTTP.replace(python(SERVE, "", "8000"), python(late, "", "8000"))), wait=False
    )
    assert served_by(await box.get("web", 80)).startswith("web-")


PARTS = """
kind: ConfigMap
metadata: {name: settings}
data: {COLOUR: green, app.toml: "level = 1"}
---
kind: Secret
metadata: {name: keys}
stringData: {KEY: s3cret}
---
kind: Pod
metadata: {name: parts, labels: {tier: back}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: first
    image: app:7
    command: [sh, -c, "echo $GREETING > /scratch/made; echo first is done"]
    env: [{name: COLOUR, value: blue}, {name: GREETING, value: "hello $(COLOUR)"}]
    volumeMounts: [{name: work, mountPath: /scratch}]
  containers:
  - name: main
    image: app
    command: [sh, -c, "cat /scratch/made; exec sleep $(NAP)"]
    workingDir: /srv/code
    envFrom: [{configMapRef: {name: settings}}]
    env:
    - {name: NAP, value: "600"}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: keys, key: KEY}}}
    - {name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: WHERE, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    volumeMounts:
    - {name: work, mountPath: /scratch}
    - {name: settings, mountPath: /etc/settings}
    - {name: settings, mountPath: /etc/one.toml, subPath: app.toml}
    - {name: keys, mountPath: /var/keys}
    - {name: about, mountPath: /about}
  - name: beside
    image: app
    command: [python3, -c, "import socket,time; s = socket.create_server(('127.0.0.1', 7777)); time.sleep(600)"]
    startupProbe: {exec: {command: [python3, -c, "import socket; socket.create_connection(('127.0.0.1', 7777))"]}}
  volumes:
  - {name: work, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 256}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
"""


async def test_environment_files_and_containers_of_a_pod(start: Start, tmp_path: Path) -> None:
    box: Box = await start(PARTS)
    assert await box.says("first is done") == "parts"
    await box.says("hello blue")
    (pod,) = await box.pods()
    show = "echo $COLOUR $SECRET $WHO $WHERE; pwd; cat /etc/settings/app.toml /etc/one.toml /var/keys/KEY /about/labels"
    wanted = f"green s3cret parts {pod['status']['podIP']}\n/srv/code\nlevel = 1level = 1s3cret" + 'tier="back"'
    assert await box.run("parts", "sh", "-c", show) == wanted
    assert await box.run("parts", "stat", "-L", "-c", "%a", "/var/keys/KEY") == "400"
    # One network for all its containers, and no other: not the host's localhost.
    connect = "import socket,sys; print(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))"
    assert await box.run("parts", "python3", "-c", connect, "7777") == "0"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert await box.run("parts", "python3", "-c", connect, str(listener.getsockname()[1])) != "0"
    missing = await box.sandbox.cluster.run("parts", "main", ["no-such-program"])
    assert missing.code == -1
    # Files of the API are private: nobody but this user gets at them.
    assert not list(box.data.rglob("KEY"))
    options = Options("agent")
    async with open_view(
        box.sandbox.cluster, "pod/parts", folder=tmp_path / "v", data=tmp_path / "d", options=options
    ) as view:
        assert [str(each) for each in view.notes if "stands in" in each.text] == []
        work = next(each for each in view.mounts if each.path == "/scratch")
        assert (work.source / "made").read_text() == "hello blue\n"
        assert next(each for each in view.environment.variables if each.name == "SECRET").secret


JOBS = """
kind: Job
metadata: {name: good}
spec:
  completions: 2
  template: {spec: {restartPolicy: Never, containers: [{name: main, image: app, command: [echo, well done]}]}}
---
kind: Job
metadata: {name: bad}
spec:
  backoffLimit: 1
  template: {spec: {restartPolicy: Never, containers: [{name: main, image: app, command: ["false"]}]}}
---
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: "@daily"
  jobTemplate:
    spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: app, command: [echo, never]}]}}}
"""


async def test_jobs_run_to_their_end(start: Start) -> None:
    box: Box = await start(JOBS, wait=False)

    async def ended(name: str) -> dict[str, int]:
        async with asyncio.timeout(10):
            while True:
                status = (await box.sandbox.cluster.get(kinds.JOB, name)).get("status") or {}
                if status.get("conditions"):
                    assert status["conditions"][0]["type"] == {"good": "Complete", "bad": "Failed"}[name]
                    return {"succeeded": status["succeeded"], "failed": status["failed"]}
                await box.sandbox._objects.changed()

    assert await ended("good") == {"succeeded": 2, "failed": 0}
    assert await ended("bad") == {"succeeded": 0, "failed": 2}
    assert {each["status"]["phase"] for each in await box.pods("good")} == {"Succeeded"}
    assert not await box.pods("nightly")
    assert (await box.sandbox.cluster.get(kinds.CRON_JOB, "nightly"))["spec"]["schedule"] == "@daily"


async def test_what_can_not_run_says_why_and_the_rest_runs(start: Start) -> None:
    wrong = deployment("lost", HTTP).replace("image: app", "image: registry.test/lost:1") + "\n---\n"
    keyless = deployment("keyless", HTTP + "\nenv: [{name: A, valueFrom: {secretKeyRef: {name: none, key: a}}}]")
    silent = deployment("silent", "args: [serve]")
    other = "\n---\nkind: Ingress\nmetadata: {name: front}\n"
    text = wrong + keyless + "\n---\n" + silent + "\n---\n" + deployment("web", HTTP) + other
    box: Box = await start(text, wait=False)
    began = time.monotonic()
    missing = sorted(await box.sandbox.ready(20))
    assert time.monotonic() - began < 10  # it does not wait for what will never be
    reasons = [each.partition(": ")[2].partition(": ")[0] for each in missing]
    assert reasons == ["CreateContainerConfigError", "ErrImageNeverPull", "CreateContainerError"]
    assert 'images = { "registry.test/lost:1" = "FOLDER" }' in missing[1]
    assert "secret none does not exist" in missing[0]
    assert served_by(await box.get("web", 80)).startswith("web-")
    (pod,) = await box.pods("lost")
    assert pod["status"]["phase"] == "Pending"
    assert box.sandbox.notes == ("the sandbox leaves out what it has no use for: Ingress (front)",)
    with pytest.raises(OpenError):
        await box.get("lost", 80)


async def test_a_pod_that_does_not_end_is_killed_after_two_seconds(start: Start) -> None:
    script = "import signal,time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    box: Box = await start(deployment("deaf", python(script), pod="terminationGracePeriodSeconds: 60"))
    await box.says("deaf")
    began = time.monotonic()
    await box.sandbox.close()
    assert 1.5 < time.monotonic() - began < 10


async def test_without_namespaces_services_say_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: ServiceNetwork, *_: object) -> None:
        raise ServiceError("this machine allows no user namespaces")

    monkeypatch.setattr(ServiceNetwork, "open", refuse)
    box: Box = await start(deployment("web", HTTP), wait=False)
    assert len(await box.sandbox.ready(10)) == 1
    assert "web does not run: this machine allows no user namespaces" in await box.get("web", 80)
    with pytest.raises(OpenError) as refused:
        await box.get("web", 81)
    assert refused.value.refusal is Refusal.REFUSED
    (note,) = box.sandbox.notes
    assert note == "the sandbox's pods do not run on this machine: this machine allows no user namespaces"
    (pod,) = await box.pods()
    assert pod["status"]["phase"] == "Pending"
    with pytest.raises(RemoteError):
        await box.sandbox.cluster.run(pod["metadata"]["name"], "main", ["true"])


async def test_python3_is_devloops_own(start: Start) -> None:
    box: Box = await start(deployment("web", HTTP))
    assert await box.run("web", "python3", "-c", "import sys; print(sys.prefix)") == sys.prefix


async def test_a_stateful_sets_pods_start_in_order(start: Start) -> None:
    text = deployment("db", HTTP.replace("path: /,", "path: /ready,"), replicas=2, kind="StatefulSet")
    text = text.replace("      containers:", "      volumes: [{name: scratch, emptyDir: {}}]\n      containers:")
    text = text.replace(
        "        image: app", "        image: app\n        volumeMounts: [{name: scratch, mountPath: /scratch}]"
    )
    box: Box = await start(text.replace("podManagementPolicy: Parallel", ""), wait=False)

    def runs(pod: Object) -> bool:
        return "running" in pod["status"]["containerStatuses"][0]["state"]

    await box.until(lambda found: runs(found[0]), "db-0")
    assert not runs((await box.pods("db-1"))[0])
    await box.run("db-0", "touch", "/scratch/ready")
    await box.until(lambda found: runs(found[0]), "db-1")

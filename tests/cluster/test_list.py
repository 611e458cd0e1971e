"""`devloop list` at a cluster: workloads, the Services that lead to them, and the project's services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from . import kit
from .command import Cli
from .conftest import Namespace
from .kit import ApiClient, client
from .test_link_contract import connected
from .test_link_life import take_away

pytestmark = pytest.mark.role("attach", agent=False)

PROJECT = """\
[remote]
[services.web]
command = "true"
[services.jobs]
command = "true"
mode = "remote"
workload = "cj/nightly"
[services.new]
command = "true"
workload = false
[services.gone]
command = "true"
workload = "deployment/gone"
"""


@pytest.fixture
def devloop(namespace: Namespace, tmp_path: Path) -> Cli:
    cli = Cli(tmp_path / "ada", namespace.developer)
    cli.folder.mkdir()
    (cli.folder / "devloop.toml").write_text(PROJECT)
    return cli


def template(name: str, **spec: Any) -> Any:
    container = client.V1Container(
        name="main", image=kit.BASE, image_pull_policy="IfNotPresent", command=["sleep", "infinity"],
        security_context=kit.RESTRICTED,
    )  # fmt: skip
    pod = client.V1PodSpec(containers=[container], termination_grace_period_seconds=0, **spec)
    return client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels={"app": name}), spec=pod)


async def populate(admin: ApiClient, namespace: str) -> None:
    """Two workloads with pods, one with none, and a Service."""
    web = client.V1Deployment(
        metadata=client.V1ObjectMeta(name="web"),
        spec=client.V1DeploymentSpec(
            replicas=2, selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template("web")
        ),
    )
    apps = client.AppsV1Api(admin)
    await apps.create_namespaced_deployment(namespace, web)
    job = client.V1JobTemplateSpec(spec=client.V1JobSpec(template=template("nightly", restart_policy="Never")))
    nightly = client.V1CronJob(
        metadata=client.V1ObjectMeta(name="nightly"),
        spec=client.V1CronJobSpec(schedule="0 3 * * *", suspend=True, job_template=job),
    )
    await client.BatchV1Api(admin).create_namespaced_cron_job(namespace, nightly)
    ports = [client.V1ServicePort(name="http", port=80), client.V1ServicePort(name="admin", port=81)]
    service = client.V1Service(
        metadata=client.V1ObjectMeta(name="shop"), spec=client.V1ServiceSpec(selector={"app": "web"}, ports=ports)
    )
    await client.CoreV1Api(admin).create_namespaced_service(namespace, service)
    await kit.run_pod(admin, namespace, "lone")
    await kit.until(apps.list_namespaced_deployment, namespace, ready=lambda each: each.status.ready_replicas == 2)


@pytest.mark.role("attach")
async def test_what_there_is_and_which_service_stands_for_it(
    admin: ApiClient, namespace: Namespace, devloop: Cli, tmp_path: Path
) -> None:
    await populate(admin, namespace.name)
    # The agent is devloop's own, and nothing to work on.
    async with connected(namespace.developer, tmp_path / "key", "agent"):
        found = await devloop("list", "--json")
        text = await devloop("list")
    assert found.json["workloads"] == [
        {
            "workload": "deployment/web",
            "ready": 2,
            "wanted": 2,
            "services": [{"name": "shop", "ports": [80, 81]}],
            "service": "web",
            "mode": None,
            "held_by": [],
        },
        {
            "workload": "cronjob/nightly",
            "ready": None,
            "wanted": None,
            "services": [],
            "service": "jobs",
            "mode": None,
            "held_by": [],
        },
        {
            "workload": "pod/lone",
            "ready": 1,
            "wanted": 1,
            "services": [],
            "service": None,
            "mode": None,
            "held_by": [],
        },
    ]
    assert namespace.name in found.json["where"]
    assert "gone stands for deployment/gone" in found.stderr
    rows = [line.split() for line in text.stdout.splitlines()]
    assert rows[1:3] == [
        ["deployment/web", "2/2", "shop:80,81", "web", "(local,", "not", "up)"],
        ["cronjob/nightly", "jobs", "(remote,", "not", "up)"],
    ]


async def test_what_may_not_be_listed_is_named(admin: ApiClient, namespace: Namespace, devloop: Cli) -> None:
    await take_away(admin, namespace.name, "cronjobs", "list")

    async def unseen() -> Any:
        return (await devloop("list", "--json")).json["unseen"]

    # Both are in one rule of the Role.
    await kit.eventually(unseen, ["cronjobs", "jobs"])
    assert (
        "you may not list: cronjobs (the Role devloop-ingest), jobs (the Role devloop-ingest)"
        in (await devloop("list")).stderr
    )
    assert "forbidden" in (await devloop("list", "-n", "default", code=3)).stderr

"""A provisioner for the storage class `local-path`: a folder of the node's for each claim.

Runs in the node. What it does is Kubernetes' external provisioner protocol: a claim that waits for its
first consumer gets the annotation `volume.kubernetes.io/selected-node`; the volume made for it names the
claim in `claimRef`; a volume whose claim is gone is `Released`, and deleted with its data.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from kubernetes.aio import client as generated
from kubernetes.aio import config as configuring
from kubernetes.aio import watch as watching

# The package has no types but for its models, and those call every field optional.
client: Any = generated
config: Any = configuring
watch: Any = watching

NAME = "devloop.test/local-path"
FOLDER = Path("/var/lib/kubelet/local-path")


def volume_for(claim: Any) -> Any:
    """The volume of one claim, bound to it and to no other."""
    name = f"pvc-{claim.metadata.uid}"
    node = claim.metadata.annotations["volume.kubernetes.io/selected-node"]
    expression = client.V1NodeSelectorRequirement(key="kubernetes.io/hostname", operator="In", values=[node])
    return client.V1PersistentVolume(
        metadata=client.V1ObjectMeta(name=name, annotations={"pv.kubernetes.io/provisioned-by": NAME}),
        spec=client.V1PersistentVolumeSpec(
            capacity={"storage": claim.spec.resources.requests["storage"]},
            access_modes=claim.spec.access_modes,
            persistent_volume_reclaim_policy="Delete",
            storage_class_name=claim.spec.storage_class_name,
            host_path=client.V1HostPathVolumeSource(path=str(FOLDER / name), type="Directory"),
            claim_ref=client.V1ObjectReference(
                api_version="v1",
                kind="PersistentVolumeClaim",
                name=claim.metadata.name,
                namespace=claim.metadata.namespace,
                uid=claim.metadata.uid,
            ),
            node_affinity=client.V1VolumeNodeAffinity(
                required=client.V1NodeSelector(
                    node_selector_terms=[client.V1NodeSelectorTerm(match_expressions=[expression])]
                )
            ),
        ),
    )


def make_folder(folder: Path) -> None:
    """Make a volume's folder for anybody: pods run as any user, and a hostPath volume knows no fsGroup."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)


async def objects(listing: Callable[..., Awaitable[Any]]) -> AsyncIterator[Any]:
    """Every object that there is and then each that is added or changed, over lost connections."""
    while True:
        try:
            async with watch.Watch() as events:
                async for event in events.stream(listing):
                    if event["type"] in ("ADDED", "MODIFIED"):
                        yield event["object"]
        except (client.ApiException, OSError, TimeoutError) as problem:
            print(f"watching again: {problem}", flush=True)
            await asyncio.sleep(1)


async def provision(api: Any, classes: set[str]) -> None:
    async for claim in objects(api.list_persistent_volume_claim_for_all_namespaces):
        chosen = (claim.metadata.annotations or {}).get("volume.kubernetes.io/selected-node")
        wanted = claim.status.phase == "Pending" and claim.metadata.deletion_timestamp is None
        if not (chosen and wanted and claim.spec.storage_class_name in classes):
            continue
        volume = volume_for(claim)
        make_folder(Path(volume.spec.host_path.path))
        try:
            await api.create_persistent_volume(volume)
            print(
                f"made {volume.metadata.name} for {claim.metadata.namespace}/{claim.metadata.name}",
                flush=True,
            )
        except client.ApiException as problem:
            if problem.status != 409:  # there already: an older state of the claim was seen twice
                print(f"{volume.metadata.name}: {problem.reason}", flush=True)


async def reclaim(api: Any) -> None:
    async for volume in objects(api.list_persistent_volume):
        made_here = (volume.metadata.annotations or {}).get("pv.kubernetes.io/provisioned-by") == NAME
        if made_here and volume.status.phase == "Released" and volume.metadata.deletion_timestamp is None:
            shutil.rmtree(volume.spec.host_path.path, ignore_errors=True)
            try:
                await api.delete_persistent_volume(volume.metadata.name)
                print(f"deleted {volume.metadata.name}", flush=True)
            except client.ApiException as problem:
                print(f"{volume.metadata.name}: {problem.reason}", flush=True)


async def main(kubeconfig: str) -> None:
    await config.load_kube_config(kubeconfig)
    async with client.ApiClient() as connection, asyncio.TaskGroup() as tasks:
        api = client.CoreV1Api(connection)
        tasks.create_task(provision(api, {"local-path"}))
        tasks.create_task(reclaim(api))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

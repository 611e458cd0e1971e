"""Manifests → objects, and the errors of those that are wrong."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest

from devloop.errors import ConfigError
from devloop.remote.workload import references as kinds
from devloop.sandbox import controllers, manifests
from devloop.sandbox.objects import CLAIM, Objects

SHOP = Path(__file__).parents[3] / "examples" / "shop" / "k8s"


def read(tmp_path: Path, text: str, namespace: str = "shop") -> manifests.Read:
    (tmp_path / "all.yaml").write_text(text)
    return manifests.read([tmp_path / "all.yaml"], namespace)


def test_a_folder_of_manifests() -> None:
    found = manifests.read([SHOP], "shop")
    names = {(each.kind.name, each.name) for each in found.manifests}
    assert {("Deployment", "web"), ("StatefulSet", "store"), ("Job", "seed"), ("ConfigMap", "shop")} <= names
    assert found.notes == ()
    assert "store.yaml, document 2 (Service store)" in next(
        each.where for each in found.manifests if (each.kind.name, each.name) == ("Service", "store")
    )


def test_what_the_api_server_fills_in(tmp_path: Path) -> None:
    text = """
kind: Secret
metadata: {name: keys}
data: {A: YQ==}
stringData: {B: b}
---
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
kind: Service
metadata: {name: nodes}
spec: {clusterIP: None, ports: [{port: 80, targetPort: http, protocol: UDP}]}
"""
    secret, web, nodes = (each.object for each in read(tmp_path, text).manifests)
    assert {key: base64.b64decode(value) for key, value in secret["data"].items()} == {"A": b"a", "B": b"b"}
    assert "stringData" not in secret
    assert web["spec"]["ports"] == [{"port": 80, "targetPort": 80, "protocol": "TCP"}]
    assert nodes["spec"]["clusterIPs"] == ["None"]
    assert nodes["spec"]["ports"] == [{"port": 80, "targetPort": "http", "protocol": "UDP"}]


def test_lists_are_taken_apart_and_the_last_of_a_name_stays(tmp_path: Path) -> None:
    text = """
kind: List
items:
- {kind: ConfigMap, metadata: {name: one}, data: {a: "1"}}
- {kind: ConfigMap, metadata: {name: two}}
---
---
kind: ConfigMap
metadata: {name: one}
data: {a: "2"}
"""
    found = read(tmp_path, text).manifests
    assert {each.name: each.object.get("data") for each in found} == {"one": {"a": "2"}, "two": None}


def test_what_is_left_out_is_named_once(tmp_path: Path) -> None:
    text = """
{kind: Ingress, metadata: {name: front}}
---
{kind: ClusterRole, metadata: {name: reader}}
---
{kind: Ingress, metadata: {name: back}}
---
{kind: ConfigMap, metadata: {name: other, namespace: elsewhere}}
"""
    found = read(tmp_path, text)
    assert found.manifests == ()
    left_out, elsewhere = found.notes
    assert left_out.endswith("ClusterRole (reader), Ingress (front, back)")
    assert elsewhere.startswith("the sandbox leaves out 1 objects of namespace elsewhere")


POD = "kind: Pod\nmetadata: {name: web}\nspec: {containers: [%s]}\n"


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("a: [", "is not YAML", "document 1"),
        ("kind: ConfigMap\nmetadata: {name: a}\n---\nkind: }\n", "is not YAML", ":4, document 2"),
        ("kind: ConfigMap\nmetadata: {name: a}\n---\n- a\n", "it is no mapping", "document 2"),
        ("metadata: {name: a}", "it has no `kind`", "document 1"),
        ("kind: Service\nmetadata: {}\n", "no `metadata.name`", "document 1 (Service)"),
        ("kind: ConfigMap\nmetadata: {name: A_b}\n", "is no name", "document 1 (ConfigMap A_b)"),
        ("kind: ConfigMap\nmetadata: {name: a}\ndata: {PORT: 80}\n", "data.PORT is not text", "(ConfigMap a)"),
        ("kind: Secret\nmetadata: {name: a}\ndata: {KEY: s3cr}t}\n", "is not YAML", "document 1"),
        ("kind: Secret\nmetadata: {name: a}\ndata: {KEY: abc}\n", "data.KEY is not base64", "(Secret a)"),
        ("kind: Service\nmetadata: {name: a}\nspec: {ports: [{name: b}]}\n", "has no `port`", "(Service a)"),
        ("kind: Service\nmetadata: {name: a}\nspec: {type: ExternalName}\n", "no `externalName`", "(Service a)"),
        ("kind: Deployment\nmetadata: {name: a}\nspec: {}\n", "no pod template", "(Deployment a)"),
        (POD % "", "no `containers`", "(Pod web)"),
        (POD % "{image: a}", "has no `name`", "(Pod web)"),
        (POD % "{name: a, command: [sleep, 5]}", "`command` is no list of texts", "(Pod web)"),
        (POD % "{name: a, env: [{name: PORT, value: 80}]}", "env PORT is not text", "(Pod web)"),
        (POD % "{name: a, volumeMounts: [{name: b, mountPath: c}]}", "absolute `mountPath`", "(Pod web)"),
        (
            "kind: Deployment\nmetadata: {name: a}\nspec: {selector: {matchLabels: {app: a}}, "
            "template: {spec: {containers: [{name: a}]}}}\n",
            "does not match",
            "(Deployment a)",
        ),
    ],
)
def test_an_error_names_file_and_document(tmp_path: Path, text: str, what: str, where: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        read(tmp_path, text)
    assert what in wrong.value.what
    assert wrong.value.where is not None
    assert wrong.value.where.startswith(str(tmp_path / "all.yaml"))
    assert wrong.value.where.endswith(where)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "no manifests")):
        with pytest.raises(ConfigError) as wrong:
            manifests.read([path], "shop")
        assert what in wrong.value.what


def workload(text: str, tmp_path: Path) -> tuple[Objects, kinds.Kind]:
    objects = Objects("shop")
    (made,) = read(tmp_path, text).manifests
    objects.put(made.kind, made.object)
    return objects, made.kind


TEMPLATE = "template: {metadata: {labels: {app: a}}, spec: {containers: [{name: main}]}}"


def test_a_deployments_pods_have_its_replica_set_as_owner(tmp_path: Path) -> None:
    text = f"kind: Deployment\nmetadata: {{name: api}}\nspec: {{replicas: 2, {TEMPLATE}}}\n"
    objects, kind = workload(text, tmp_path)
    deployment = objects.get(kind, "api")
    owned = objects.put(kinds.REPLICA_SET, controllers.replica_set(deployment))
    assert owned["metadata"]["ownerReferences"][0]["uid"] == deployment["metadata"]["uid"]
    pods = [each.object for each in controllers.pods(kinds.REPLICA_SET, owned, random.Random(1))]
    assert len({each["metadata"]["name"] for each in pods}) == 2
    for each in pods:
        assert each["metadata"]["name"].startswith(owned["metadata"]["name"] + "-")
        assert each["metadata"]["ownerReferences"][0]["uid"] == owned["metadata"]["uid"]
        labels = each["metadata"]["labels"]
        assert labels["app"] == "a"
        assert owned["metadata"]["name"] == f"api-{labels['pod-template-hash']}"


def test_a_stateful_sets_pods_have_names_and_claims_of_their_own(tmp_path: Path) -> None:
    claims = "volumeClaimTemplates: [{metadata: {name: data}}]"
    text = (
        f"kind: StatefulSet\nmetadata: {{name: db}}\nspec: {{replicas: 2, serviceName: nodes, {claims}, {TEMPLATE}}}\n"
    )
    objects, kind = workload(text, tmp_path)
    made = list(controllers.pods(kind, objects.get(kind, "db"), random.Random(1)))
    names = [(each.kind.name, each.object["metadata"]["name"]) for each in made]
    assert names == [(CLAIM.name, "data-db-0"), ("Pod", "db-0"), (CLAIM.name, "data-db-1"), ("Pod", "db-1")]
    spec = made[1].object["spec"]
    assert spec["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}]
    assert (spec["hostname"], spec["subdomain"]) == ("db-0", "nodes")


@pytest.mark.parametrize(("kind", "count"), [("DaemonSet", 1), ("Job", 1), ("CronJob", 0)])
def test_other_workloads_pods(tmp_path: Path, kind: str, count: int) -> None:
    spec = f"{{{TEMPLATE}}}" if kind != "CronJob" else f"{{jobTemplate: {{spec: {{{TEMPLATE}}}}}}}"
    objects, found = workload(f"kind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n", tmp_path)
    assert len(list(controllers.pods(found, objects.get(found, "a"), random.Random(1)))) == count

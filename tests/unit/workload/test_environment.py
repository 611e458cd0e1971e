from __future__ import annotations

import base64
from typing import Any

import pytest

from devloop.remote.workload import downward, environment, running
from devloop.remote.workload.cluster import Ran
from devloop.remote.workload.fake import FakeCluster
from devloop.remote.workload.model import Absence, Environment

from .conftest import of_template, sources, workload


def b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


def key(name: str, kind: str, source: str, which: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "valueFrom": {f"{kind}KeyRef": {"name": source, "key": which, **more}}}


MAPS = {"one": {"data": {"A": "a", "B": "multi\nline"}, "binaryData": {"X": b64(b"x")}}, "two": {"data": {"A": "2"}}}
SECRETS = {"one": {"data": {"P": b64(b"pa$$(A)ss"), "RAW": b64(b"\xff")}}, "nul": {"data": {"N": b64(b"a\0b")}}}


def make(container: dict[str, Any], **given: Any) -> Environment:
    return environment.make(workload(container), sources(config_maps=MAPS, secrets=SECRETS, **given))


def test_later_sources_win_and_env_wins_over_them() -> None:
    of = [{"configMapRef": {"name": "one"}}, {"prefix": "P_", "configMapRef": {"name": "one"}}]
    found = make({"envFrom": [*of, {"configMapRef": {"name": "two"}}], "env": [{"name": "B", "value": "env"}]})
    values = found.mapping()
    assert (values["A"], values["B"], values["P_B"]) == ("2", "env", "multi\nline")
    assert "X" not in values, "binary data is no text"
    origins = {each.name: each.origin for each in found.variables}
    assert origins["A"] == "configmap two key A"
    assert origins["B"] == "the pod's spec"


def test_an_optional_key_that_is_missing_leaves_what_env_from_gave() -> None:
    env = [key("A", "configMap", "one", "none", optional=True), key("C", "secret", "none", "k", optional=True)]
    values = make({"envFrom": [{"configMapRef": {"name": "one"}}], "env": env}).mapping()
    assert values["A"] == "a"
    assert "C" not in values


def test_secrets_are_marked_also_where_another_value_holds_one() -> None:
    env = [
        key("PASSWORD", "secret", "one", "P"),
        {"name": "URL", "value": "x://$(PASSWORD)@db"},
        {"name": "PLAIN", "value": "$(NONE)"},
    ]
    found = {each.name: each for each in make({"env": env}).variables}
    assert found["PASSWORD"].secret
    assert found["URL"].secret
    assert not found["PLAIN"].secret
    assert found["URL"].value == "x://pa$$(A)ss@db", "what is put in is not expanded again"


def test_variables_that_double_each_other_come_to_an_end() -> None:
    env = [{"name": "V0", "value": "x" * 100}]
    env += [{"name": f"V{n}", "value": f"$(V{n - 1})$(V{n - 1})"} for n in range(1, 60)]
    found = make({"env": env})
    assert found.problems
    assert sum(len(each.value) for each in found.variables) < 1 << 20


def test_bytes_that_are_no_text_keep_their_value() -> None:
    value = make({"env": [key("RAW", "secret", "one", "RAW")]}).mapping()["RAW"]
    assert value.encode(errors="surrogateescape") == b"\xff"


def test_each_problem_is_named_and_no_value_is() -> None:
    env = [key("A", "configMap", "none", "k"), key("B", "secret", "one", "none"), key("N", "secret", "nul", "N")]
    found = make({"env": env, "envFrom": [{"secretRef": {"name": "gone"}}]})
    assert [each.subject for each in found.problems] == [
        "envFrom secret gone",
        "variable A",
        "variable B",
        "variable N",
    ]
    assert "configmap none does not exist in namespace shop" in found.problems[1].what
    assert all(each.hint for each in found.problems[:3])
    assert "a\\x00b" not in repr(found.problems)


def test_what_may_not_be_read_is_left_out_and_noted() -> None:
    secrets = {"one": Absence.FORBIDDEN}
    made = environment.make(workload({"env": [key("P", "secret", "one", "P")]}), sources(secrets=secrets))
    assert not made.problems
    assert "P" not in made.mapping()
    assert any("secret one may not be read" in str(each) for each in made.notes)


def service(name: str, created: str = "2026-11-21T09:00:00Z", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "creationTimestamp": created}
    return {"metadata": metadata, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}], **spec}}


def test_service_links() -> None:
    ports = [{"port": 80, "name": "http"}, {"port": 53, "name": "dns-u", "protocol": "UDP"}]
    found = make({}, services=[service("api-one", clusterIP="fd00::9", ports=ports)]).mapping(image=False)
    assert found == {
        "API_ONE_SERVICE_HOST": "fd00::9",
        "API_ONE_SERVICE_PORT": "80",
        "API_ONE_SERVICE_PORT_HTTP": "80",
        "API_ONE_SERVICE_PORT_DNS_U": "53",
        "API_ONE_PORT": "tcp://[fd00::9]:80",
        "API_ONE_PORT_80_TCP": "tcp://[fd00::9]:80",
        "API_ONE_PORT_80_TCP_PROTO": "tcp",
        "API_ONE_PORT_80_TCP_PORT": "80",
        "API_ONE_PORT_80_TCP_ADDR": "fd00::9",
        "API_ONE_PORT_53_UDP": "udp://[fd00::9]:53",
        "API_ONE_PORT_53_UDP_PROTO": "udp",
        "API_ONE_PORT_53_UDP_PORT": "53",
        "API_ONE_PORT_53_UDP_ADDR": "fd00::9",
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "443",
        "KUBERNETES_PORT": "tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
        "KUBERNETES_PORT_443_TCP_PORT": "443",
        "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
    }


def test_no_links_to_services_that_are_headless_newer_or_not_wanted() -> None:
    services = [
        service("old"),
        service("headless", clusterIP="None"),
        service("new", "2026-11-21T09:30:01Z"),
        service("outside", clusterIP=None),
    ]
    names = {each.split("_")[0] for each in make({}, services=services).mapping(image=False)}
    assert names == {"OLD", "KUBERNETES"}
    unlinked = environment.make(workload(enableServiceLinks=False), sources(services=services))
    assert {each.split("_")[0] for each in unlinked.mapping(image=False)} == {"KUBERNETES"}


def test_the_api_server_is_stood_in_for_by_its_name() -> None:
    container = {"env": [{"name": "API", "value": "https://$(KUBERNETES_SERVICE_HOST)"}]}
    found = make(container, master=None)
    assert found.mapping()["API"] == "https://kubernetes.default.svc"
    assert {"API", "KUBERNETES_SERVICE_HOST", "KUBERNETES_PORT"} <= found.stand_ins


def test_names_that_old_versions_skip() -> None:
    maps = {"one": {"data": {"1st": "x", "ok.1": "y", "..": "z"}}}
    container = {"envFrom": [{"configMapRef": {"name": "one"}}]}
    old = environment.make(workload(container), sources(config_maps=maps, relaxed_names=False))
    assert "1st" not in old.mapping()
    assert old.mapping()["ok.1"] == "y"
    assert "1st" in environment.make(workload(container), sources(config_maps=maps)).mapping()


def test_a_running_container_fills_what_was_stood_in_for() -> None:
    env = [
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}},
        {"name": "LEVEL", "value": "new"},
    ]
    made = make({"env": env}, master=None, local={"cpu": "2"})
    real = {"CPUS": "64", "FILE": "of the file", "LEVEL": "old", "PATH": "/bin"}
    real |= {
        name: value.replace("kubernetes.default.svc", "10.96.0.1")
        for name, value in made.mapping().items()
        if name.startswith("KUBERNETES_")
    }
    found = environment.enriched(made, real)
    values = found.mapping()
    assert (values["CPUS"], values["FILE"], values["PATH"]) == ("64", "of the file", "/bin")
    assert values["LEVEL"] == "new", "a restarted container has what the spec says now"
    assert values["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert not found.stand_ins
    assert [each.subject for each in found.notes] == ["variable LEVEL"]
    assert [each.name for each in found.image] == ["PATH", "HOSTNAME"]


async def test_several_ways_to_read_a_container(cluster: FakeCluster) -> None:
    tried: list[str] = []

    def only_shell(pod: str, container: str, command: tuple[str, ...]) -> Ran:
        tried.append(command[0])
        return Ran(0, b"A=1\nx\0SHLVL=1\0", b"") if command[0] == "sh" else Ran(127, b"", b"not found")

    cluster.on_run = only_shell
    found, note = await running.read(cluster, workload())
    assert found == {"A": "1\nx"}
    assert note is None
    assert tried[0] == "cat"


@pytest.mark.parametrize("why", ["forbidden", "no tools", "no pod"])
async def test_it_says_why_a_container_can_t_be_read(cluster: FakeCluster, why: str) -> None:
    if why == "forbidden":
        cluster.forbidden.add(("create", "pods/exec"))
    found, note = await running.read(cluster, of_template() if why == "no pod" else workload())
    assert found is None
    assert note is not None
    assert {"forbidden": "pods/exec", "no tools": "busybox", "no pod": "does not run"}[why] in note.text


def test_hostname_is_the_pod_s_where_nothing_can_be_run_in_its_container() -> None:
    """An image of one static binary has no program that could print its environment."""

    def named(container: dict[str, Any] | None = None, **spec: Any) -> str:
        made = workload(container or {})
        made.pod["spec"].update(spec)
        return environment.make(made, sources()).mapping()["HOSTNAME"]

    assert named() == "web-1"
    assert named(hostname="db-0", subdomain="db") == "db-0"
    assert named(hostNetwork=True, nodeName="node-7") == "node-7"
    assert named({"env": [{"name": "HOSTNAME", "value": "mine"}]}) == "mine"
    found = environment.enriched(environment.make(workload({}), sources()), {"HOSTNAME": "run"})
    assert found.mapping()["HOSTNAME"] == "run", "the running container knows better"


def test_annotations_are_those_that_the_kubelet_prints() -> None:
    made = workload({})
    made.pod["metadata"].update(annotations={"a": "1"}, creationTimestamp="2026-11-21T11:00:00Z")
    assert downward.field("metadata.annotations", made, file=True).value == (
        'a="1"\nkubernetes.io/config.seen="2026-11-21T11:00:00Z"\nkubernetes.io/config.source="api"'
    )
    assert downward.field("metadata.annotations['kubernetes.io/config.source']", made).value == "api"
    assert downward.field("metadata.annotations['b']", made).value == ""

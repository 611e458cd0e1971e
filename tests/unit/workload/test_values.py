"""Expansion, quantities, the downward API's text, references: the small rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.errors import UsageError
from devloop.remote.workload import downward, quantity, references
from devloop.remote.workload.expansion import expand

from .conftest import of_template, sources, workload

VARIABLES = {"VAR_A": "A", "VAR_B": "B", "VAR_C": "C", "VAR_REF": "$(VAR_A)", "VAR_EMPTY": ""}


# The cases of third_party/forked/golang/expansion/expand_test.go.
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$(VAR_A)", "A"),
        ("___$(VAR_B)___", "___B___"),
        ("___$(VAR_C)", "___C"),
        ("$(VAR_A)-$(VAR_A)", "A-A"),
        ("$(VAR_A)-1", "A-1"),
        ("$(VAR_A)_$(VAR_B)_$(VAR_C)", "A_B_C"),
        ("$$(VAR_B)_$(VAR_A)", "$(VAR_B)_A"),
        ("$$(VAR_A)_$$(VAR_B)", "$(VAR_A)_$(VAR_B)"),
        ("f000-$$VAR_A", "f000-$VAR_A"),
        ("foo\\$(VAR_C)bar", "foo\\Cbar"),
        ("foo\\\\$(VAR_C)bar", "foo\\\\Cbar"),
        ("foo$(VAR_EMPTY)bar", "foobar"),
        ("foo$(VAR_Awhoops!", "foo$(VAR_Awhoops!"),
        ("f00__(VAR_A)__", "f00__(VAR_A)__"),
        ("$?_boo_$!", "$?_boo_$!"),
        ("$VAR_A", "$VAR_A"),
        ("$(VAR_DNE)", "$(VAR_DNE)"),
        ("$$$$$$(BIG_MONEY)", "$$$(BIG_MONEY)"),
        ("$$$$$$(VAR_A)", "$$$(VAR_A)"),
        ("$$$$$$$(VAR_A)", "$$$A"),
        ("$VAR_A)", "$VAR_A)"),
        ("${VAR_A}", "${VAR_A}"),
        ("$(VAR_B)_______$(A", "B_______$(A"),
        ("$(VAR_C)_______$(", "C_______$("),
        ("$(VAR_A)foobarzab$", "Afoobarzab$"),
        ("foo-\\$(VAR_A", "foo-\\$(VAR_A"),
        ("--$($($($($--", "--$($($($($--"),
        ("$($($($($--foo$(", "$($($($($--foo$("),
        ("foo0--$($($($(", "foo0--$($($($("),
        ("$(foo$$var)", "$(foo$$var)"),
        ("$(VAR_REF)", "$(VAR_A)"),
        ("", ""),
        ("$", "$"),
    ],
)
def test_expansion(text: str, wanted: str) -> None:
    assert expand(text, VARIABLES.get) == wanted


def test_what_no_program_starts_with_is_not_made() -> None:
    with pytest.raises(ValueError, match="no program starts"):
        expand("$(LONG)" * 1_000_000, {"LONG": "x" * 100_000}.get)


@given(st.text(alphabet="ab$() ü"))
def test_text_without_a_reference_stays(text: str) -> None:
    escaped = text.replace("$", "$$")
    assert expand(escaped, lambda name: "!") == text


@pytest.mark.parametrize(
    ("text", "divisor", "milli", "wanted"),
    [
        ("250m", "0", True, "1"),
        ("1250m", "1m", True, "1250"),
        ("9", "", True, "9"),
        ("64Mi", "1", False, str(64 << 20)),
        ("64Mi", "1Mi", False, "64"),
        ("100M", "1Mi", False, "96"),
        ("1500k", "1k", False, "1500"),
        ("1e3", "1", False, "1000"),
        ("1.5Gi", "1Gi", False, "2"),
        ("100u", "1m", True, "1"),
        ("", "1", False, "0"),
        ("2Ei", "1Pi", False, "2048"),
    ],
)
def test_quantities(text: str, divisor: str, milli: bool, wanted: str) -> None:
    assert quantity.divided(text, divisor, milli=milli) == wanted


@pytest.mark.parametrize("text", ["", "1x", "Ki", "1 Ki", "--1", "0x10", "1e9999999999"])
def test_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity.parse(text)


def test_labels_are_quoted_as_go_does() -> None:
    assert downward.formatted({"b": 'say "hi"\n', "a": "\x01\x7fü\u2028\U0001f600"}) == (
        'a="\\x01\\x7fü\\u2028\U0001f600"\nb="say \\"hi\\"\\n"'
    )


def test_what_only_a_pod_has_is_stood_in_for_without_one() -> None:
    running, template = workload(), of_template()
    for path in ("status.podIP", "status.hostIP", "spec.nodeName", "metadata.uid"):
        assert not downward.field(path, running).stand_in
        found = downward.field(path, template)
        assert found.value
        assert "no pod of deployment/web runs" in found.stand_in
    assert downward.field("status.podIPs", running).value == "10.0.0.7,fd00::7"
    assert downward.field("spec.serviceAccountName", template).value == "web"
    assert downward.field("metadata.labels['app']", running).value == "web"
    assert downward.field("metadata.labels['none']", running).value == ""


@pytest.mark.parametrize("path", ["spec.containers", "metadata.name['x']", "status.phase"])
def test_fields_that_there_are_not(path: str) -> None:
    with pytest.raises(downward.UnsupportedError):
        downward.field(path, workload())


def test_a_file_has_fewer_fields() -> None:
    with pytest.raises(downward.UnsupportedError):
        downward.field("status.podIP", workload(), file=True)


def test_a_limit_that_is_not_set_is_the_pods_then_the_nodes_then_this_machines() -> None:
    ref = {"resource": "limits.memory", "divisor": "1Mi"}
    node, local = {"memory": "16Gi"}, {"memory": "8Gi"}
    whole = workload(resources={"limits": {"memory": "100Mi"}})
    assert downward.resource(ref, whole, sources(allocatable=node)).value == "100"
    assert downward.resource(ref, workload(), sources(allocatable=node)).value == "16384"
    found = downward.resource(ref, workload(), sources(local=local))
    assert found.value == "8192"
    assert "this machine" in found.stand_in
    request = {"resource": "requests.memory"}
    assert downward.resource(request, workload(), sources(allocatable=node)).value == "0"


def test_references() -> None:
    for text in ("deployment/web", "deploy/web", "Deployments/web", "deployments.apps/web"):
        assert references.parse(text) == (references.DEPLOYMENT, "web")
    assert references.parse("deployments.v1.apps/web") == (references.DEPLOYMENT, "web")
    assert references.parse("po/web-0") == (references.POD, "web-0")
    assert references.parse("web") == (None, "web")
    assert references.parse("sts/db") == (references.STATEFUL_SET, "db")
    assert references.DEPLOYMENT.path("shop", "web") == "/apis/apps/v1/namespaces/shop/deployments/web"
    assert references.NODE.path(None, "n") == "/api/v1/nodes/n"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "KIND/NAME"),
        ("/web", "KIND/NAME"),
        ("deploymnt/web", "did you mean deployment/web"),
        ("service/web", "deployment/web"),
        ("svc/web", "known are deployment/NAME (deploy/NAME), statefulset/NAME (sts/NAME)"),
        ("applications.argoproj.io/web", "known are deployment/NAME"),
        ("deployments.example.com/web", "known are deployment/NAME"),
        ("deploy/", "KIND/NAME"),
        ("a/b/c", "KIND/NAME"),
        ("deploy/..", "lower-case"),
        ("pod/Web", "lower-case"),
    ],
)
def test_wrong_references(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        references.parse(text)
    assert hint in str(caught.value)

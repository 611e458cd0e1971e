"""The bill of materials of the agent's image as the cluster runs it."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

import pytest

from tests import needs
from tests.cluster.kube import images
from tools.sbom import sbom

pytestmark = pytest.mark.cluster


def test_it_names_what_the_image_was_made_of() -> None:
    if not images.is_built():
        needs.missing("the images are not built: make cluster")
    layers = [images.base_layer(), *images.agent_layers()]
    with ExitStack() as stack:
        document = sbom([stack.enter_context(each.path.open("rb")) for each in layers], images.AGENT)
    found = {each.get("purl", each["name"]): each["version"] for each in json.loads(document)["components"]}
    pins = re.findall(r"^([a-z0-9-]+)==([^ ]+)", images.REQUIREMENTS.read_text(), re.MULTILINE)
    assert len(pins) > 5
    for name, version in pins:
        assert f"pkg:pypi/{name}@{version}" in found
    debian = {re.sub(r".*/|@.*", "", each) for each in found if each.startswith("pkg:deb/debian/")}
    assert {"python3", "nftables", "ca-certificates", "libc6"} <= debian
    assert found["debian"] == "12" and found["devloop"]

"""What CI and the agent's image install is held to hashes, of the versions that constraints.txt has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import needs

ROOT = Path(__file__).parents[3]
AGENT = ROOT / "devloop" / "agent"
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^ ;\\]+)")
HASH = re.compile(r" +--hash=sha256:[0-9a-f]{64}( \\)?")
ECOSYSTEMS = {"pyproject.toml": "pip", "requirements.txt": "pip", "go.mod": "gomod", "package.json": "npm"}


def pins(path: Path) -> dict[str, str]:
    """Package, as PyPI calls it, to version."""
    rows = (PIN.match(row) for row in path.read_text().splitlines())
    return {re.sub(r"[-_.]+", "-", row[1]).lower(): row[2] for row in rows if row}


@pytest.mark.parametrize(
    ("path", "at_least"),
    [(ROOT / "requirements-ci.txt", 50), (AGENT / "requirements.txt", 5), (ROOT / "requirements-uv.txt", 1)],
    ids=["ci", "agent", "uv"],
)
def test_each_version_has_hashes_and_no_address(path: Path, at_least: int) -> None:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", path.read_text())[1:]
    assert len(blocks) == len(pins(path)) >= at_least
    for block in blocks:
        first, *hashes = block.strip().splitlines()
        assert PIN.match(first) and hashes, first
        assert all(HASH.fullmatch(each) for each in hashes), first
    assert "//" not in path.read_text()


def test_they_are_the_versions_of_the_constraints() -> None:
    """`make hashes` writes them anew, for who has added a package or changed a version."""
    known, hashed, agent = (
        pins(ROOT / "constraints.txt"),
        pins(ROOT / "requirements-ci.txt"),
        pins(AGENT / "requirements.txt"),
    )
    assert known.items() <= hashed.items(), "make hashes"
    # setuptools builds, and colorama is Windows's.
    assert hashed.keys() - known.keys() == {"setuptools", "colorama"}, "make hashes"
    assert agent.items() <= known.items()
    assert pins(AGENT / "requirements.in").items() <= agent.items(), "make hashes"


def test_the_image_is_made_of_a_base_and_packages_that_are_known_by_their_digests() -> None:
    text = (AGENT / "Dockerfile").read_text()
    assert re.findall(r"^FROM .*", text, re.MULTILINE) == ["FROM ${BASE}"]
    assert re.findall(r"^ARG BASE.*", text, re.MULTILINE) == ["ARG BASE", "ARG BASE"], (
        "no default, which would be a tag"
    )
    assert "--require-hashes --requirement /tmp/requirements.txt" in text
    found = re.search(r"^RUN (printf .*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert found
    digest = "sha256:" + "0f" * 32
    for base, good in (
        (f"debian@{digest}", True),
        (f"debian:bookworm-slim@{digest}", True),
        ("debian:bookworm-slim", False),
        ("", False),
        (f"debian@{digest}0", False),
        (f"debian@{digest[:-1]}", False),
    ):
        ran = subprocess.run(["sh", "-c", found[1]], env={"BASE": base, "PATH": "/usr/bin:/bin"}, capture_output=True)
        assert (ran.returncode == 0) is good, base


def test_no_file_with_versions_is_left_out_of_dependabot() -> None:
    needs.program("git")
    if not (ROOT / ".git").exists():
        needs.missing("this is no checkout")
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    seen = {
        (each["package-ecosystem"], folder)
        for each in updates
        for folder in each.get("directories", [each.get("directory")])
    }
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [Path(each) for each in listed if Path(each).name in ECOSYSTEMS]
    there = {(ECOSYSTEMS[each.name], "/" + each.parent.as_posix().removeprefix(".")) for each in files}
    assert there == seen

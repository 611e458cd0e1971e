"""Known vulnerabilities of what is installed by a file of requirements, from pip-audit.

    python -m tools.audit requirements-ci.txt devloop/agent/requirements.txt

pip-audit asks PyPI about each version. A mirror that has the packages alone knows nothing of vulnerabilities, and
pip-audit passes over what it gets no answer about. So this tells three ends apart: 0, all was looked at and nothing is
known; 1, something is known; 3, not everything could be looked at. With `--where-possible`, as CI has it, 3 is a line
that says so, and the exit code 0.

pip-audit is installed into an environment of its own: what looks for faults in packages is none of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PIP_AUDIT = "pip-audit>=2.9"
SECONDS = 600
FOUND, UNSEEN = 1, 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of one file's packages."""

    looked_at: int
    unseen: tuple[str, ...]
    """Packages of which nothing was said, whether they are vulnerable or not."""
    found: tuple[str, ...]
    """A line for each vulnerability."""


def read(document: str) -> Answer:
    """pip-audit's JSON. ValueError if it is none."""
    try:
        packages = json.loads(document)["dependencies"]
        unseen = tuple(each["name"] for each in packages if "skip_reason" in each)
        found = tuple(
            f"{each['name']} {each['version']}: {fault['id']}"
            + (f", mended in {' or '.join(fault['fix_versions'])}" if fault["fix_versions"] else "")
            for each in packages
            for fault in each.get("vulns", ())
        )
    except (KeyError, TypeError) as problem:
        raise ValueError(f"pip-audit's answer can't be read: {problem!r}") from problem
    return Answer(len(packages) - len(unseen), unseen, found)


def ask(program: Path, requirements: Path) -> Answer:
    """Run it on one file. OSError, ValueError if it has no answer: the network, most of the time."""
    command = [str(program), "--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json"]
    try:
        done = subprocess.run(
            [*command, "--requirement", str(requirements)], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as problem:
        raise ValueError(f"no answer in {SECONDS} s") from problem
    if not done.stdout.strip():
        raise ValueError((done.stderr.strip().splitlines() or ["no answer"])[-1][:300])
    return read(done.stdout)


def report(name: str, answer: Answer | str) -> tuple[int, str]:
    """The exit code for one file, and what is said of it. A text stands for an answer that there is none of."""
    if isinstance(answer, str):
        return UNSEEN, f"{name}: NOT AUDITED: {answer}"
    lines = [f"{name}: {each}" for each in answer.found]
    if answer.unseen:
        all_ = answer.looked_at + len(answer.unseen)
        why = "the index that is reached here says nothing of vulnerabilities"
        lines.append(f"{name}: NOT AUDITED: {len(answer.unseen)} of {all_} packages: {why}")
    if not lines:
        lines.append(f"{name}: nothing is known of its {answer.looked_at} packages")
    return FOUND if answer.found else UNSEEN if answer.unseen else 0, "\n".join(lines)


def main() -> int:
    """The exit code; see the module."""
    parser = argparse.ArgumentParser(description="Known vulnerabilities of pinned requirements.")
    parser.add_argument("requirements", nargs="+", type=Path)
    parser.add_argument("--where-possible", action="store_true", help="succeed if the vulnerabilities can't be asked")
    args = parser.parse_args()
    codes = []
    with tempfile.TemporaryDirectory(prefix="devloop-audit-") as folder:
        install = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PIP_AUDIT]
        problem = ""
        for step in ([sys.executable, "-m", "venv", folder], install):
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                problem = f"pip-audit can't be installed: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}"
                break
        for each in args.requirements:
            answer: Answer | str = problem
            if not problem:
                try:
                    answer = ask(Path(folder, "bin", "pip-audit"), each)
                except (OSError, ValueError) as failed:
                    answer = str(failed)
            code, text = report(str(each), answer)
            codes.append(code)
            print(text, flush=True)
    if FOUND in codes:
        return FOUND
    return UNSEEN if UNSEEN in codes and not args.where_possible else 0


if __name__ == "__main__":
    sys.exit(main())

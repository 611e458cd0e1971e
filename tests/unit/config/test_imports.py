"""What loading a file costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GOOD = "import sys, pathlib\nfrom devloop.config.load import load\nload(pathlib.Path(sys.argv[1]), {})\n"
LIST = "print(*sorted({m.partition('.')[0] for m in sys.modules}))"


@pytest.mark.slow
def test_a_good_file_needs_no_tree_sitter_or_difflib(tmp_path: Path) -> None:
    file = tmp_path / "devloop.toml"
    file.write_text('[services.x]\ncommand = "python x.py"\nenv = { A = "${B:-1}" }\n')
    run = subprocess.run([sys.executable, "-c", GOOD + LIST, str(file)], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {
        "tree_sitter",
        "tree_sitter_toml",
        "difflib",
        "pathspec",
        "asyncio",
        "yaml",
    }


@pytest.mark.slow
def test_the_model_and_the_package_import_nothing_heavy() -> None:
    code = "import sys\nimport devloop.config, devloop.config.model, devloop.config.diff\n" + LIST
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {"pydantic", "tomllib", "tree_sitter"}

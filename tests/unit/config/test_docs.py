"""docs/configuration.md is the reference: it names every key, and its examples load."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from devloop.config.json_schema import json_schema
from devloop.config.schema import Defaults

from .folder import Folder

TEXT = (Path(__file__).parents[3] / "docs/configuration.md").read_text()
DEBUGGING = (Path(__file__).parents[3] / "docs/debugging.md").read_text()
EXAMPLES = [*re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL), *re.findall(r"```toml\n(.*?)```", DEBUGGING, re.DOTALL)]


def test_every_key_has_its_row() -> None:
    rows = set(re.findall(r"^\| `\[*([a-z_]+)[\].A-Z]*` \|", TEXT, re.MULTILINE))
    schema = json_schema()
    keys = {key for table in (schema, *schema["$defs"].values()) for key in table["properties"]}
    assert keys - {"name"} == rows


def test_the_keys_of_defaults_are_listed() -> None:
    (paragraph,) = re.findall(r"`\[defaults\]` takes (.*?)\.\n\n", TEXT, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", paragraph)) == set(Defaults.model_fields)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("\n")[0])
def test_every_example_loads(folder: Folder, example: str) -> None:
    folder.write(
        {
            "p/services/a.toml": '[services.a]\ncommand = "a"',
            "shared/store.toml": '[services.b]\ncommand = "b"',
            "p/k8s/web.yaml": "",
        }
    )
    folder.root /= "p"
    folder.load(example)
    jsonschema.validate(tomllib.loads(example), json_schema())

"""The JSON schema of devloop.toml, for editors (Taplo, Even Better TOML) and `devloop schema`."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from devloop.config import label, schema

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _ForToml(GenerateJsonSchema):
    """TOML has no null: a key that is None was not written."""

    schema_dialect = _DIALECT

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value  # as the models have it: what matters most comes first


def json_schema() -> dict[str, Any]:
    """The schema. What it can't express (names that must exist, files, cycles) is `load`'s alone.

    A file that `load` takes is valid by it. A string with `${` in it passes everywhere, as its value is
    not known to an editor.
    """
    generated = schema.File.model_json_schema(schema_generator=_ForToml)
    services = generated["properties"]["services"]
    services["propertyNames"] = {"pattern": label.PATTERN}
    for table in (generated, *generated["$defs"].values()):
        for name, value in table["properties"].items():
            # A reference has the words of what it refers to; an editor shows those of the key.
            value.setdefault("title", name.replace("_", " ").capitalize())
            if "$ref" in value and "description" not in value:
                value["description"] = generated["$defs"][value["$ref"].rpartition("/")[2]]["description"]
    return {
        "$schema": _DIALECT,
        **generated,
        "title": "devloop.toml",
        "anyOf": [{"required": ["services"]}, {"required": ["include"]}],
    }

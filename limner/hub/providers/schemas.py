"""Input schemas as providers' models declare them: what is not named is refused."""

from typing import Any


def strict(required: list[str], examples: list[dict[str, Any]], **properties: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of an object that has these properties and no others."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
        "examples": examples,
    }

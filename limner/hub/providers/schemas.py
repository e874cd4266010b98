"""Input schemas as providers' models declare them: what is not named is refused."""

from typing import Any


def needs(**fields: list[str]) -> dict[str, Any]:
    """What each `task` must have besides; the first is meant where none is named. To be merged into a schema."""
    first = next(iter(fields))
    named = {task: {} if task == first else {"required": ["task"]} for task in fields}
    return {
        "allOf": [
            {"if": {"properties": {"task": {"const": task}}, **named[task]}, "then": {"required": required}}
            for task, required in fields.items()
        ]
    }


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

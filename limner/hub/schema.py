"""A model's strict input schema: one parse, from which both the price and the provider's request are built.

JSON Schema draft 2020-12. What the schema does not name is refused; defaults are filled in; a whole number sent
as 2.0 becomes 2.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jsonschema_rs

from limner.web.errors import invalid

MAX_REPORTED = 20
MAX_NAME = 128
SCALARS = ("string", "integer", "number", "boolean", "null")

ENVELOPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "minLength": 1, "maxLength": 128, "description": "A model's name, see GET /api/v1/models."},
        "input": {"type": "object", "description": "What the model takes: its own strict schema."},
        "priority": {
            "type": "integer", "minimum": 1, "maximum": 100, "default": 10,
            "description": "Order among your own app's waiting jobs: lower goes first.",
        },
        "run_at": {
            "type": "string", "maxLength": 40,
            "description": "Not before this time (RFC 3339 with an offset): until then the job waits. A past time means now.",
        },
        "webhook_url": {
            "type": "string", "minLength": 1, "maxLength": 2048,
            "description": "Where to tell of this job's end, signed with the app's own webhook secret. A public https address.",
        },
        "idempotency_key": {
            "type": "string", "minLength": 1, "maxLength": 255,
            "description": "Sending the same request again with the same key never makes a second job.",
        },
    },
    "required": ["model", "input"],
    "additionalProperties": False,
}  # fmt: skip
KIND = {
    "type": "string", "minLength": 1, "maxLength": 64,
    "description": "Instead of a model: what kind of work it is, such as text.generate. The organization's settings say by which model.",
}  # fmt: skip
BY_KIND: dict[str, Any] = {
    **ENVELOPE,
    "properties": {"kind": KIND, **{name: sub for name, sub in ENVELOPE["properties"].items() if name != "model"}},
    "required": ["kind", "input"],
}
"""An order that leaves the model to the organization's settings."""
ORDER: dict[str, Any] = {
    **ENVELOPE,
    "properties": {**ENVELOPE["properties"], "kind": KIND},
    "required": ["input"],
}
"""Either of the two, as it is documented."""

CREDITS: dict[str, Any] = {
    "amount": {"type": "integer", "minimum": 1, "maximum": 1_000_000_000, "description": "Whole credits."},
    "reason": {"type": "string", "maxLength": 500, "default": "", "description": "Shown on the user's statement."},
    "kind": {"type": "string", "enum": ["grant", "bonus"], "default": "grant", "description": "Told apart on statements."},
    "expires_at": {
        "type": "string", "minLength": 20, "maxLength": 40,
        "description": "RFC 3339 with an offset: what is not spent by then lapses. Absent: the credits never end.",
    },
}  # fmt: skip
GRANT: dict[str, Any] = {
    "type": "object",
    "properties": {
        **CREDITS,
        "idempotency_key": {
            "type": "string", "minLength": 1, "maxLength": 255,
            "description": "Sending the same grant again with the same key grants once.",
        },
    },
    "required": ["amount"],
    "additionalProperties": False,
}  # fmt: skip


GRANT_ROW: dict[str, Any] = {
    "type": "object",
    "properties": {
        "external_id": {"type": "string", "minLength": 1, "maxLength": 255, "description": "One user may stand in several rows."},
        **CREDITS,
    },
    "required": ["external_id", "amount"],
    "additionalProperties": False,
}  # fmt: skip
BATCH: dict[str, Any] = {  # its rows are parsed one by one, so that each tells what is wrong with it
    "type": "object",
    "properties": {
        "grants": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1000,
            "description": "Granted in this order, all or none.",
        },
        "idempotency_key": GRANT["properties"]["idempotency_key"],
    },
    "required": ["grants"],
    "additionalProperties": False,
}


class SchemaInvalid(ValueError):
    """A model's input schema is not one limner can hold requests to; the message says why."""


class InputSchema:
    """A compiled schema. `at` is the JSON pointer its values stand under in the request body."""

    def __init__(self, schema: Mapping[str, Any], at: str = "") -> None:
        """Raises SchemaInvalid: not a schema, not an object's, or one that lets unknown fields pass."""
        if schema.get("type") != "object" or schema.get("additionalProperties") is not False:
            raise SchemaInvalid('an input schema is of type "object" with "additionalProperties": false')
        try:
            self._validator = jsonschema_rs.Draft202012Validator(dict(schema), mask="the value", retriever=_nowhere)
        except (ValueError, jsonschema_rs.ValidationError) as error:
            raise SchemaInvalid(str(error)) from None
        if (outputs := schema.get("properties", {}).get("num_outputs")) is not None:
            _priced(outputs)
        self._schema = schema
        self._at = at

    def parse(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The value with defaults filled in. Raises ApiError 400 with a message for each wrong pointer."""
        if wrong := self.problems(value):
            raise invalid(wrong)
        return _filled(value, self._schema)

    def problems(self, value: Mapping[str, Any]) -> dict[str, list[str]]:
        """What is wrong at which pointer, at most MAX_REPORTED: the answer to a hostile body stays short."""
        if self._validator.is_valid(value):
            return {}
        unknown, shown = self._shown(value)
        problems = {f"{self._at}/{_escape(name)}": ["is not a known field"] for name in unknown[:MAX_REPORTED]}
        try:
            for error in self._validator.iter_errors(shown):
                if unknown and error.kind.name == "minProperties" and not error.instance_path:
                    continue  # it had more than is shown
                self._add(problems, error)
                if len(problems) >= MAX_REPORTED:
                    break
        except ValueError:  # the validator's own limit of recursion
            problems.setdefault(self._at, []).append("is nested too deeply")
        return dict(itertools.islice(problems.items(), MAX_REPORTED)) or {self._at: ["is not valid"]}

    def _shown(self, value: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any]]:
        """The unknown fields, and the others with what is enough to say what is wrong with them.

        The validator copies a wrong value into each of its errors: of a megabyte of nonsense that took a tenth of a second.
        """
        if "patternProperties" in self._schema:
            return [], value
        properties: Mapping[str, Any] = self._schema.get("properties", {})
        unknown = [name for name in value if name not in properties]
        return unknown, {name: _cut(item, properties[name]) for name, item in value.items() if name in properties}

    def _add(self, problems: dict[str, list[str]], error: jsonschema_rs.ValidationError) -> None:
        base = self._at + "".join(f"/{_escape(part)}" for part in error.instance_path)
        kind = error.kind.name
        if kind == "additionalProperties":
            for name in error.kind.as_dict()["unexpected"][:MAX_REPORTED]:
                problems.setdefault(f"{base}/{_escape(name)}", []).append("is not a known field")
        elif kind == "required":
            problems.setdefault(f"{base}/{_escape(error.kind.as_dict()['property'])}", []).append("is required")
        else:
            problems.setdefault(base, []).append(error.message)


def _nowhere(uri: str) -> Any:
    """The validator would fetch a `$ref` by itself, from the network or this machine's files."""
    raise ValueError(f"a schema may refer to itself only, not to {uri}")


def _priced(outputs: Any) -> None:
    """`num_outputs` is what a request is priced by: anything but a bounded count would make a price of its own."""
    low, high = (outputs.get(name) for name in ("minimum", "maximum")) if isinstance(outputs, dict) else (None, None)
    whole = all(isinstance(bound, int) and bound >= 1 for bound in (low, high))
    if not whole or outputs.get("type") != "integer" or type(outputs.get("default", 1)) is not int:
        raise SchemaInvalid('"num_outputs" is of type "integer" with a "minimum" of 1 or more and a "maximum"')


def _cut(value: Any, schema: Any) -> Any:
    """A list or text one longer than it may be; an empty list or object for one that may not be there at all."""
    if not isinstance(value, list | dict | str) or not isinstance(schema, dict):
        return value
    if isinstance(value, str):
        longest = schema.get("maxLength")
        return value[: longest + 1] if isinstance(longest, int) else value
    if schema.get("type") in SCALARS:
        return type(value)()
    longest = schema.get("maxItems")
    return value[: longest + 1] if isinstance(value, list) and isinstance(longest, int) else value


def _filled(value: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    result = dict(value)
    for name, sub in properties.items():
        if name not in result:
            if "default" in sub:
                result[name] = sub["default"]
            continue
        given = result[name]
        if isinstance(given, dict):
            result[name] = _filled(given, sub)
        elif isinstance(given, float) and sub.get("type") == "integer":
            result[name] = int(given)
    return result


def _escape(part: str | int) -> str:
    """RFC 6901; a name too long to be anybody's field is cut."""
    return str(part)[:MAX_NAME].replace("~", "~0").replace("/", "~1")

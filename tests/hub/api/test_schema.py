"""What a model's input schema may be: strict, self-contained, and safe to price by."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limner.hub.schema import InputSchema, SchemaInvalid
from limner.web.errors import ApiError

STRICT = {"type": "object", "additionalProperties": False}


def schema(**properties: Any) -> dict[str, Any]:
    return {**STRICT, "properties": properties}


@pytest.mark.parametrize(
    "given",
    [
        {}, {"type": "object"}, {"type": "array", "additionalProperties": False}, {**STRICT, "additionalProperties": True},
        {**STRICT, "additionalProperties": {}}, {**STRICT, "properties": {"a": {"type": "nonsense"}}},
        {**STRICT, "required": "a"}, schema(a={"pattern": "("}),
    ],
)  # fmt: skip
def test_a_schema_that_lets_unknown_fields_pass_or_is_none_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SchemaInvalid):
        InputSchema(given)


@pytest.mark.parametrize(
    "outputs",
    [
        {"type": "number", "minimum": 1, "maximum": 4}, {"type": "integer"}, {"type": "integer", "minimum": 1},
        {"type": "integer", "minimum": 0, "maximum": 4}, {"type": "integer", "minimum": -4, "maximum": 4},
        {"type": ["integer", "null"], "minimum": 1, "maximum": 4}, {"enum": [1, 2]}, True, {},
        {"type": "integer", "minimum": 0.5, "maximum": 4}, {"type": "integer", "minimum": 1, "maximum": 4, "default": 0.5},
    ],
)  # fmt: skip
def test_mj12_a_number_of_outputs_that_cannot_be_priced_is_refused(outputs: Any) -> None:
    """A price is this number times the unit price: 0, -1, 1.5 or null would make prices nobody set."""
    with pytest.raises(SchemaInvalid):
        InputSchema(schema(num_outputs=outputs))


ALL = {
    **schema(text={"type": "string"}, some={"type": "array", "maxItems": 2, "items": {"type": "integer"}}, any={}),
    "required": ["any"],
}


@pytest.mark.parametrize(
    ("value", "pointers"),
    [
        ({"any": 1, "x": 1, "text": 2}, {"/x", "/text"}),
        ({"x": 1}, {"/x", "/any"}),
        ({"any": 1, "text": [{}] * 300_000}, {"/text"}),
        ({"any": 1, "text": {str(n): n for n in range(80_000)}}, {"/text"}),
        ({"any": 1, "some": [1] * 300_000}, {"/some"}),
        ({"any": 1, "some": ["a"] * 300_000}, {"/some", "/some/0", "/some/1", "/some/2"}),
        ({"any": [{}] * 1000, "some": [1, "a"]}, {"/some/1"}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_also_where_most_of_it_is_not_looked_at(value: Any, pointers: set[str]) -> None:
    assert set(InputSchema(ALL).problems(value)) == pointers


def test_of_a_great_many_unknown_fields_a_few_are_named() -> None:
    found = InputSchema(ALL).problems({"any": 1, **{f"x{n}": n for n in range(80_000)}})

    assert 1 <= len(found) <= 20
    assert {text for texts in found.values() for text in texts} == {"is not a known field"}


@pytest.mark.parametrize(
    "more", [{"maxProperties": 1}, {"not": {"required": ["text"]}}, {"patternProperties": {"^p": {"type": "null"}}}]
)
def test_a_value_that_is_not_valid_never_passes(more: dict[str, Any]) -> None:
    for value in ({"any": 1, "text": "a", "p": 1}, {"any": 1, "text": "a", "some": [1] * 9, "p": 1}):
        with pytest.raises(ApiError):
            InputSchema(ALL | more).parse(value)


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server of this machine, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "string"}')

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_a_schema_never_makes_the_server_fetch_anything(listener: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = listener
    file = tmp_path / "schema.json"
    file.write_text('{"type": "string"}')

    for reference in (f"{url}/schema", file.as_uri(), f"{url}/other#/$defs/x", "other.json"):
        with pytest.raises(SchemaInvalid):
            InputSchema(schema(a={"$ref": reference}))

    assert asked == []
    inside = InputSchema({**schema(a={"$ref": "#/$defs/text"}), "$defs": {"text": {"type": "string"}}})
    assert inside.parse({"a": "b"}) == {"a": "b"}
    with pytest.raises(ApiError):
        inside.parse({"a": 1})


def test_a_value_nested_deeper_than_the_validator_goes_is_a_clients_mistake() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]

    with pytest.raises(ApiError) as raised:
        InputSchema(STRICT, at="/input").parse({"x": deep})

    assert raised.value.status == 400


def test_defaults_are_filled_at_every_level_and_the_request_stays_as_it_was() -> None:
    nested = schema(
        inner={"type": "object", "properties": {"n": {"type": "integer", "default": 3}}}, k={"default": "v"}
    )
    given: dict[str, Any] = {"inner": {}}

    assert InputSchema(nested).parse(given) == {"inner": {"n": 3}, "k": "v"}
    assert given == {"inner": {}}
